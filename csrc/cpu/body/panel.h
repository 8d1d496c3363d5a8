// The product all kernels are made of: a tile of sums held in registers.
//
//   c[i][j] (+)= sum over blocks b, inputs p < depth of
//                a[(index[b] * depth + p) * a_stride + i] * w[(b * depth + p) * w_stride + j]
//
//            w: one vector row per input, 1 or 2 vectors wide
//            [ j ... ]
//        a   +-------+   MR x NV accumulators stay in registers over all blocks;
//     [ i ]  | sums  |   per input: NV loads of w, MR broadcasts of a, MR * NV multiply-adds.
//            +-------+
#pragma once

#include "cpu/body/arithmetic.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

struct Panel {
  const float* a;
  int64_t a_stride;
  const std::int32_t* index;  // which block of inputs each block of w meets
  int64_t blocks, depth;
  const float* w;
  int64_t w_stride;
  float* c;
  int64_t c_stride;
  bool accumulate;  // add to c, or overwrite it
};

// Floats. Weights are streamed from L3 or memory by the first tile that uses them, and the hardware
// does not look beyond a page.
constexpr int64_t weights_ahead = 1024;

template <int MR, int NV>
void panel(const Panel& p) {
  // A short tile has too few sums to hide the latency of a multiply-add: each is split in several.
  constexpr int lanes = MR * NV >= 8 ? 1 : MR * NV >= 4 ? 2 : 4;
  constexpr int W = F::width;
  F sum[lanes][MR][NV];
#pragma GCC unroll 4
  for (int l = 0; l < lanes; ++l)
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[l][i][j] = zero();

  if (p.accumulate)
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) __builtin_prefetch(p.c + i * p.c_stride + j * W);

  const auto step = [&](const float* a, const float* w, auto& acc) __attribute__((always_inline)) {
    F row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = load(w + j * W);
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i) {
      const F x = set1(a[i]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, row[j], acc[i][j]);
    }
  };

  const float* w = p.w;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const float* a = p.a + p.index[b] * p.depth * p.a_stride;
    const float* next = p.a + p.index[b + 1 < p.blocks ? b + 1 : 0] * p.depth * p.a_stride;
    int64_t k = 0;
    for (; k + lanes <= p.depth; k += lanes) {
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) {
        __builtin_prefetch(next);
        next += p.a_stride;
        __builtin_prefetch(w + weights_ahead);
        if (NV == 2) __builtin_prefetch(w + weights_ahead + W);
        step(a, w, sum[l]);
        a += p.a_stride;
        w += p.w_stride;
      }
    }
    if constexpr (lanes > 1)
      for (; k < p.depth; ++k, a += p.a_stride, w += p.w_stride) step(a, w, sum[0]);
  }

#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      float* c = p.c + i * p.c_stride + j * W;
      F total = sum[0][i][j];
#pragma GCC unroll 4
      for (int l = 1; l < lanes; ++l) total = total + sum[l][i][j];
      store(c, p.accumulate ? load(c) + total : total);
    }
}

using PanelKernel = void (*)(const Panel&);

// The kernel for `rows` <= F::tile_rows(NV) rows.
template <int NV, int MR = F::tile_rows(NV)>
inline PanelKernel panel_for(int rows) {
  if constexpr (MR > 1)
    if (rows != MR) return panel_for<NV, MR - 1>(rows);
  return &panel<MR, NV>;
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
