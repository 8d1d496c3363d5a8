// Linears whose zeros are regular within blocks: 2:4, and libraries of block patterns.
#include <algorithm>

#include "cases/linear.h"
#include "cuda/library_linear/library_linear.h"
#include "cuda/sparse_linear/sparse_linear.h"

using namespace secateurs::cuda;

namespace {

constexpr int AS_CHOSEN = -1;

struct Problem {
  int m, n, k;
  Finish finish = {};
  int p = 0, q = 0, patterns = 0, ones = 0;  // of a library
  int padding = 0;                           // numbers between the rows of x
  int parts = 0;                             // AS_CHOSEN: what cut() makes of it
};

std::string text(const Problem& p, Dtype dtype) {
  return std::string(name(dtype)) + " m=" + std::to_string(p.m) + " n=" + std::to_string(p.n) +
         " k=" + std::to_string(p.k) + " pattern=" + std::to_string(p.p) + "x" +
         std::to_string(p.q) + " parts=" + std::to_string(p.parts);
}

struct Rows {
  std::int64_t stride;
  Array x;
  Numbers dense;

  Rows(const Problem& p, Dtype dtype, Random& random)
      : stride(p.k + p.padding), x(p.m * stride - p.padding, dtype), dense(p.m * p.k) {
    x.fill(random);
    for (int m = 0; m < p.m; ++m)
      for (int k = 0; k < p.k; ++k) dense[m * p.k + k] = x.get(m * stride + k);
  }
};

void sparse(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  const Rows rows(p, dtype, random);
  Array values(std::size_t{1} * p.n * p.k / 2, dtype);
  values.fill(random, 0.3);
  Numbers weight(std::size_t{1} * p.n * p.k);
  std::vector<std::uint32_t> kept(p.n / 16 * (p.k / 32) * 16);
  for (int n = 0; n < p.n; ++n)
    for (int four = 0; four < p.k / 4; ++four) {
      int places[2] = {random.below(4), random.below(3)};
      if (places[1] >= places[0]) ++places[1];
      std::sort(places, places + 2);
      for (int i = 0; i < 2; ++i) {
        weight[n * p.k + four * 4 + places[i]] = values.get(n * (p.k / 2) + four * 2 + i);
        const int word = ((n / 16 * (p.k / 32) + four / 8) * 8 + n % 8) * 2 + four / 4 % 2;
        kept[word] |= static_cast<std::uint32_t>(places[i])
                      << (n % 16 / 8 * 16 + (four % 4 * 2 + i) * 2);
      }
    }
  const Table<std::uint32_t> table(kept);
  const FinishArrays finish(p.m, p.n, dtype, p.finish, random);
  SparseLinear problem{rows.x.data(), rows.stride,       values.data(), table.data(),
                       p.k,           finish.epilogue(), dtype};
  Cut how = cut(problem, 0);
  if (p.parts != AS_CHOSEN) how.parts = p.parts;
  Array partial(partial_sums(problem, how), Dtype::float32);
  problem.partial = static_cast<float*>(partial.data());
  sparse_linear(problem, how, {0, nullptr});
  finish.judge_product(rows.dense, weight, p.k);
}

void library(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  const Rows rows(p, dtype, random);
  const int area = p.p * p.q, blocks = p.n / p.p * (p.k / p.q);
  std::vector<unsigned char> patterns(p.patterns * area), codes(blocks);
  for (int l = 0; l < p.patterns; ++l)
    for (int i = 0, left = p.ones; i < area; ++i)
      if (random.below(area - i) < left) {
        patterns[l * area + i] = 1;
        --left;
      }
  Array values(std::size_t{1} * blocks * p.ones, dtype);
  values.fill(random, 0.3);
  Numbers weight(std::size_t{1} * p.n * p.k);
  for (int b = 0; b < blocks; ++b) {
    codes[b] = static_cast<unsigned char>(random.below(p.patterns));
    for (int i = 0, entry = 0; i < area; ++i)
      if (patterns[codes[b] * area + i])
        weight[(b / (p.k / p.q) * p.p + i / p.q) * p.k + b % (p.k / p.q) * p.q + i % p.q] =
            values.get(b * p.ones + entry++);
  }
  const Table<unsigned char> codes_there(codes), library_there(patterns);
  const FinishArrays finish(p.m, p.n, dtype, p.finish, random);
  LibraryLinear problem{rows.x.data(),
                        rows.stride,
                        values.data(),
                        codes_there.data(),
                        reinterpret_cast<const bool*>(library_there.data()),
                        p.k,
                        p.p,
                        p.q,
                        p.patterns,
                        p.ones,
                        finish.epilogue(),
                        dtype};
  Cut how = cut(problem, 0);
  if (p.parts != AS_CHOSEN) how.parts = p.parts;
  Array partial(partial_sums(problem, how), Dtype::float32);
  problem.partial = static_cast<float*>(partial.data());
  library_linear(problem, how, {0, nullptr});
  finish.judge_product(rows.dense, weight, p.k);
}

}  // namespace

std::vector<Case> pattern_cases() {
  const Finish all{Activation::gelu, true, true, true};
  std::vector<Case> cases;
  const auto add = [&](const char* kernel, auto run, const Problem& p, Dtype dtype) {
    cases.push_back({std::string(kernel) + rows_of(p.m) + name(dtype), text(p, dtype),
                     [=](std::uint64_t seed) { run(p, dtype, seed); }});
  };
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16}) {
    add("sparse_linear", sparse, {1, 48, 1184, all}, dtype);
    add("sparse_linear", sparse, {16, 80, 64}, dtype);
    add("sparse_linear", sparse, {200, 144, 288, all, 0, 0, 0, 0, 8}, dtype);
    add("sparse_linear", sparse, {20, 256, 32}, dtype);
    add("sparse_linear", sparse, {150, 144, 288, all}, dtype);
    add("sparse_linear", sparse, {3, 64, 1056, all, 0, 0, 0, 0, 0, 4}, dtype);
    add("sparse_linear", sparse, {16, 64, 1600, {}, 0, 0, 0, 0, 0, AS_CHOSEN}, dtype);
    add("sparse_linear", sparse, {70, 144, 224, all, 0, 0, 0, 0, 8, 3}, dtype);
    add("sparse_linear", sparse, {150, 48, 128, all, 0, 0, 0, 0, 0, 2}, dtype);
    add("library_linear", library, {5, 72, 600, all, 4, 4, 9, 4, 8}, dtype);
    add("library_linear", library, {16, 32, 256, {}, 8, 8, 16, 16}, dtype);
    add("library_linear", library, {1, 64, 64, {}, 2, 8, 3, 5}, dtype);
    add("library_linear", library, {7, 48, 1312, all, 4, 4, 16, 7, 8, 3}, dtype);
    add("library_linear", library, {16, 40, 1088, {}, 8, 2, 5, 9, 0, AS_CHOSEN}, dtype);
    add("library_linear", library, {2, 64, 544, {}, 16, 16, 4, 100, 0, 2}, dtype);
    add("library_linear", library, {3, 33, 296, {}, 1, 1, 1, 1, 0, 2}, dtype);
    add("library_linear", library, {2, 64, 512, {}, 32, 256, 2, 256}, dtype);
  }
  return cases;
}
