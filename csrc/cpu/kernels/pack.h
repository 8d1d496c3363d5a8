// Rows become columns: what a panel broadcasts must lie side by side (row strides of whole pages
// would alias in L1).
#pragma once

#include "cpu/kernels/arithmetic.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// to[p * to_stride + i] = adjust(from(i)[p]) for i < rows, p < depth. `from` gives the address of a
// row; `adjust` takes and returns vectors. Either side may be stored as bfloat16.
template <class From, class To, class Adjust>
inline void pack(From from, int rows, int64_t depth, To* to, int64_t to_stride, Adjust adjust) {
  constexpr int W = F::width;
  for (int i0 = 0; i0 < rows; i0 += W) {
    const int height = rows - i0 < W ? rows - i0 : W;
    decltype(from(0)) row[W];
    for (int i = 0; i < W; ++i) row[i] = from(i0 + (i < height ? i : 0));
    for (int64_t p0 = 0; p0 < depth; p0 += W) {
      const int width = depth - p0 < W ? static_cast<int>(depth - p0) : W;
      F r[W];
      if (width == W)
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) r[i] = adjust(load(row[i] + p0));
      else
        for (int i = 0; i < W; ++i) r[i] = adjust(load(row[i] + p0, width));
      transpose(r);
      To* column = to + p0 * to_stride + i0;
      if (height == W && width == W)
#pragma GCC unroll 16
        for (int p = 0; p < W; ++p) store(column + p * to_stride, r[p]);
      else
        for (int p = 0; p < width; ++p) store(column + p * to_stride, r[p], height);
    }
  }
}

// The same, scaled.
template <class From, class To>
inline void pack(From from, int rows, int64_t depth, float scale, To* to, int64_t to_stride) {
  const F factor = set1(scale);
  pack(from, rows, depth, to, to_stride, [factor](F x) { return x * factor; });
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
