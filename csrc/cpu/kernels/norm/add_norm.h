// y = norm(x + residual), the residual and the sum optional: one pass over memory.
//
// A row of x + residual is made once, in float32; deviations from its mean and the output then read
// it from L1. Each row is one thread's: the result does not depend on the number of threads.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/share.h"
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t serial_elements = 16'384;  // elements not worth waking threads for
constexpr int partial_sums = 4;              // hide the latency of an addition

// Folds the vectors of a row into one sum: whole(sum, j) adds the vector at j, part(sum, j, n) the
// last one, of n values, with zeros behind them.
template <class Whole, class Part>
inline float sum_over(int64_t d, Whole whole, Part part) {
  constexpr int W = F::width;
  F sums[partial_sums] = {zero(), zero(), zero(), zero()};
  int64_t j = 0;
  for (; j + partial_sums * W <= d; j += partial_sums * W)
#pragma GCC unroll 4
    for (int i = 0; i < partial_sums; ++i) sums[i] = whole(sums[i], j + i * W);
  for (; j + W <= d; j += W) sums[0] = whole(sums[0], j);
  if (j < d) sums[1] = part(sums[1], j, static_cast<int>(d - j));
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void norm_row(const AddNorm<T>& p, int64_t i, float* wide) {
  constexpr int W = F::width;
  const int64_t d = p.d;
  const T* x = p.x + i * p.x_stride;
  const T* residual = p.residual ? p.residual + i * p.residual_stride : nullptr;
  T* kept = p.sum ? p.sum + i * d : nullptr;
  T* y = p.y + i * d;
  const float* row = wide;
  if constexpr (sizeof(T) == sizeof(float)) {
    wide = y;
    row = residual ? y : x;
  }
  const bool widens = row == wide;

  const auto widen = [&](F sum, int64_t j, auto... n) {
    F v = load(x + j, n...);
    if (residual) v = v + load(residual + j, n...);
    if (kept) store(kept + j, v, n...);
    if (widens) store(wide + j, v, n...);
    return p.rms ? fma(v, v, sum) : sum + v;
  };
  const float first = sum_over(d, widen, widen) / static_cast<float>(d);

  float mean = 0, square = first;
  if (!p.rms) {
    mean = first;
    const F shift = set1(mean);
    const auto deviation = [&](F sum, int64_t j) {
      const F v = load(row + j) - shift;
      return fma(v, v, sum);
    };
    const auto last = [&](F sum, int64_t j, int n) {
      const F v = load(row + j, n) - shift;
      return select(iota() < set1(static_cast<float>(n)), fma(v, v, sum), sum);
    };
    square = sum_over(d, deviation, last) / static_cast<float>(d);
  }
  const F shift = set1(mean), scale = set1(1 / __builtin_sqrtf(square + p.eps));
  const auto finish = [&](int64_t j, auto... n) {
    const F v = (load(row + j, n...) - shift) * scale, w = load(p.weight + j, n...);
    store(y + j, p.bias ? fma(v, w, load(p.bias + j, n...)) : v * w, n...);
  };
  int64_t j = 0;
  for (; j + W <= d; j += W) finish(j);
  if (j < d) finish(j, static_cast<int>(d - j));
}

// sum and y must not overlap any input.
template <class T>
void add_norm(const AddNorm<T>& p) {
  if (!p.m || !p.d) return;
  const int threads = p.m * p.d < serial_elements ? 1 : p.threads;
  in_parallel(threads, [&] {
    float* row = scratch(0, static_cast<std::size_t>(p.d));
    const int64_t end = cut(p.m, team(), thread() + 1);
    for (int64_t i = cut(p.m, team(), thread()); i < end; ++i) norm_row(p, i, row);
  });
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
