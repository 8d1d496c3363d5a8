// Block-sparse and vector N:M linears: every tile, odd sizes, empty and long rows, cut and whole.
#include "cases/linear.h"

#include "cuda/stacked_linear/stacked_linear.h"

using namespace secateurs::cuda;

namespace {

constexpr int AS_CHOSEN = -1;

struct Problem {
  int m, n, k, bn, bk;
  double density;
  int parts = 0;  // AS_CHOSEN: what cut() makes of it on four multiprocessors
  Finish finish = {};
  int padding = 0;  // numbers between the rows of x
};

std::string text(const Problem& p, Dtype dtype) {
  return std::string(name(dtype)) + " m=" + std::to_string(p.m) + " n=" + std::to_string(p.n) +
         " k=" + std::to_string(p.k) + " block=" + std::to_string(p.bn) + "x" +
         std::to_string(p.bk) + " parts=" + std::to_string(p.parts);
}

// A random block-sparse weight: its second row of blocks is full, its third empty.
void block_sparse(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  const int rows = (p.n + p.bn - 1) / p.bn, columns = p.k / p.bk;
  std::vector<std::int32_t> indptr{0}, indices;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c)
      if (r == 2 ? false : r == 1 || random.chance(p.density)) indices.push_back(c);
    indptr.push_back(static_cast<std::int32_t>(indices.size()));
  }
  const std::int64_t stride = p.k + p.padding;
  Array x(p.m * stride - p.padding, dtype), values(indices.size() * p.bn * p.bk, dtype);
  x.fill(random);
  values.fill(random, 0.3);
  Numbers dense_x(std::size_t{1} * p.m * p.k), weight(std::size_t{1} * rows * p.bn * p.k);
  for (int m = 0; m < p.m; ++m)
    for (int k = 0; k < p.k; ++k) dense_x[m * p.k + k] = x.get(m * stride + k);
  for (int r = 0; r < rows; ++r)
    for (int b = indptr[r]; b < indptr[r + 1]; ++b)
      for (int k = 0; k < p.bk; ++k)
        for (int n = 0; n < p.bn; ++n)
          weight[(r * p.bn + n) * p.k + indices[b] * p.bk + k] =
              values.get((b * p.bk + k) * p.bn + n);
  const Table<std::int32_t> device_indptr(indptr), device_indices(indices);
  const FinishArrays finish(p.m, p.n, dtype, p.finish, random);
  StackedLinear problem{x.data(),
                        stride,
                        values.data(),
                        device_indptr.data(),
                        device_indices.data(),
                        rows,
                        static_cast<int>(indices.size()),
                        p.bn,
                        p.bk,
                        p.k,
                        finish.epilogue(),
                        dtype};
  Cut how = cut(problem, 0);
  if (p.parts != AS_CHOSEN) how.parts = p.parts;
  Array partial(partial_sums(problem, how), Dtype::float32);
  problem.partial = static_cast<float*>(partial.data());
  block_sparse_linear(problem, how, {0, nullptr});
  finish.judge_product(dense_x, weight, p.k);
}

// bn outputs keep the same `kept` inputs. The first input is kept by none, and no number.
void vector(const Problem& p, Dtype dtype, std::uint64_t seed) {
  Random random(seed);
  const int rows = p.n / p.bn, kept = std::max(1, static_cast<int>(p.density * p.k));
  std::vector<std::int32_t> columns;
  for (int r = 0; r < rows; ++r)
    for (int c = 1, left = kept; c < p.k; ++c)
      if (random.below(p.k - c) < left) {
        columns.push_back(c);
        --left;
      }
  const std::int64_t stride = p.k + p.padding;
  Array x(p.m * stride - p.padding, dtype), values(columns.size() * p.bn, dtype);
  x.fill(random);
  values.fill(random, 0.3);
  Numbers dense_x(std::size_t{1} * p.m * p.k), weight(std::size_t{1} * p.n * p.k);
  for (int m = 0; m < p.m; ++m)
    for (int k = 1; k < p.k; ++k) dense_x[m * p.k + k] = x.get(m * stride + k);
  for (int m = 0; m < p.m; ++m) x.set(m * stride, NAN);
  for (std::size_t i = 0; i < columns.size(); ++i)
    for (int n = 0; n < p.bn; ++n)
      weight[(i / kept * p.bn + n) * p.k + columns[i]] = values.get(i * p.bn + n);
  const Table<std::int32_t> indices(columns);
  const FinishArrays finish(p.m, p.n, dtype, p.finish, random);
  StackedLinear problem{x.data(),
                        stride,
                        values.data(),
                        nullptr,
                        indices.data(),
                        rows,
                        static_cast<int>(columns.size()),
                        p.bn,
                        1,
                        p.k,
                        finish.epilogue(),
                        dtype};
  Cut how = cut(problem, 0);
  if (p.parts != AS_CHOSEN) how.parts = p.parts;
  Array partial(partial_sums(problem, how), Dtype::float32);
  problem.partial = static_cast<float*>(partial.data());
  vector_linear(problem, how, {0, nullptr});
  finish.judge_product(dense_x, weight, p.k);
}

}  // namespace

std::vector<Case> linear_cases() {
  const Finish all{Activation::gelu, true, true, true};
  const Finish some{Activation::silu, true, false, true};
  std::vector<Case> cases;
  const auto add = [&](const char* kernel, auto run, const Problem& p, Dtype dtype) {
    const std::string instance =
        kernel + std::string(rows_of(p.m)) + "width " + std::to_string(p.bn) + ", " + name(dtype);
    cases.push_back({instance, text(p, dtype), [=](std::uint64_t seed) { run(p, dtype, seed); }});
  };
  for (const Dtype dtype : {Dtype::float16, Dtype::bfloat16})
    for (const int bn : {16, 32, 64, 128}) {
      const int n = 4 * bn;
      add("block_sparse_linear", block_sparse, {1, n, 256, bn, bn, 0.5, 3, some}, dtype);
      add("block_sparse_linear", block_sparse, {13, n - 3, 384, bn, 128, 0.3, 0, all, 8}, dtype);
      add("block_sparse_linear", block_sparse, {16, n, 1024, bn, 16, 0.6, AS_CHOSEN}, dtype);
      add("block_sparse_linear", block_sparse, {200, n - 8, 256, bn, bn, 0.4, 0, all}, dtype);
      add("block_sparse_linear", block_sparse, {35, n, 256, bn, 32, 0.5, 5, some}, dtype);
      add("vector_linear", vector, {3, n, 200, bn, 1, 0.5, 0, some, 5}, dtype);
      add("vector_linear", vector, {16, n, 300, bn, 1, 0.6, 3}, dtype);
      add("vector_linear", vector, {100, 2 * bn, 152, bn, 1, 0.7, 0, all, 8}, dtype);
      add("vector_linear", vector, {20, n, 101, bn, 1, 0.5, 5}, dtype);
    }
  for (const Activation activation : {Activation::relu, Activation::gelu_tanh})
    add("block_sparse_linear", block_sparse, {5, 64, 64, 16, 16, 0.5, 0, {activation}},
        Dtype::float16);
  add("block_sparse_linear", block_sparse, {150, 120, 256, 32, 32, 0.5, 0, all}, Dtype::float16);
  add("block_sparse_linear", block_sparse, {300, 48, 64, 16, 16, 0.5, 4, all}, Dtype::bfloat16);
  add("block_sparse_linear", block_sparse, {1100, 48, 32, 16, 16, 0.9, 0}, Dtype::bfloat16);
  add("vector_linear", vector, {2, 128, 450, 64, 1, 0.7, 0}, Dtype::float16);
  return cases;
}
