// Residual and normalisation: both norms, odd widths, more numbers than threads, large means.
#include "cases/case.h"
#include "cuda/add_norm/add_norm.h"

using namespace secateurs::cuda;

namespace {

struct Problem {
  int rows, width;
  bool rms, bias = true, sum = true, residual = true;
};

void run(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  const std::size_t count = std::size_t{1} * p.rows * p.width;
  Array x(count, dtype), residual(count, dtype), weight(p.width, dtype), bias(p.width, dtype);
  Array y(count, dtype), sum(count, dtype);
  x.fill(random);
  for (std::size_t i = 0; i < count; ++i) residual.set(i, 2 + random.between(-1, 1));
  weight.fill(random);
  bias.fill(random);
  add_norm({x.data(), p.residual ? residual.data() : nullptr, weight.data(),
            p.bias ? bias.data() : nullptr, 1e-5f, p.rms, p.sum ? sum.data() : nullptr, y.data(),
            p.rows, p.width, dtype},
           {0, nullptr});
  Numbers added(count), truth(count);
  for (int r = 0; r < p.rows; ++r) {
    double mean = 0, square = 0;
    for (int i = r * p.width; i < (r + 1) * p.width; ++i) {
      added[i] = x.get(i) + (p.residual ? residual.get(i) : 0);
      mean += p.rms ? 0 : added[i] / p.width;
    }
    for (int i = r * p.width; i < (r + 1) * p.width; ++i)
      square += (added[i] - mean) * (added[i] - mean) / p.width;
    for (int i = 0; i < p.width; ++i)
      truth[r * p.width + i] =
          (added[r * p.width + i] - mean) / std::sqrt(square + 1e-5) * weight.get(i) +
          (p.bias ? bias.get(i) : 0);
  }
  judge(y, truth);
  if (p.sum) judge(sum, added);
}

}  // namespace

std::vector<Case> norm_cases() {
  std::vector<Case> cases;
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16, Dtype::float32})
    for (const Problem& p : {Problem{3, 384, false},
                             {2, 385, false, false},
                             {2, 3000, true},
                             {5, 7, true, false, false},
                             {1, 2304, false, true, false, false}})
      cases.push_back({std::string("add_norm, ") + name(dtype),
                       std::string(name(dtype)) + (p.rms ? " rms" : " layer") + " of " +
                           std::to_string(p.width),
                       [=](std::uint64_t seed) { run(p, dtype, seed); }});
  return cases;
}
