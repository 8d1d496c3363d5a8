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

#include "cpu/kernels/arithmetic.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// A word is what a panel reads at once: a float, or a pair of bf16, which counts as one input.
template <class Word>
struct Panel {
  const Word* a;
  int64_t a_stride;           // from one input to the next
  int64_t a_row;              // from one row to the next, in tiles; in panels rows are neighbours
  const std::int32_t* index;  // which block of inputs each block of w meets
  int64_t blocks, depth;
  const Word* w;
  int64_t w_stride;
  float* c;
  int64_t c_stride;
  bool accumulate;    // add to c, or overwrite it
  const Word* ahead;  // soon wanted: to be brought closer while this runs
  int64_t ahead_words;
};

// Words. Weights are streamed from L3 or memory by the first tile that uses them, and the hardware
// does not look beyond a page.
constexpr int64_t weights_ahead = 1024;

inline F broadcast(const float& x) { return set1(x); }
inline F broadcast(const Pair& x) {
  float bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return set1(bits);
}
inline F words(const float* from) { return load(from); }
inline F words(const Pair* from) { return load(reinterpret_cast<const float*>(from)); }

inline F multiply_add(float, F x, F w, F sum) { return fma(x, w, sum); }
inline F multiply_add(Pair, F x, F w, F sum) {
#ifdef SECATEURS_PAIR_PRODUCTS
  return dot(sum, x, w);
#else
  return fma(upper(x), upper(w), fma(lower(x), lower(w), sum));
#endif
}

// Splits words into elements: a float is itself, a pair gives its first element, then its second.
inline void split(float, F x, F (&each)[1]) { each[0] = x; }
inline void split(Pair, F x, F (&each)[2]) {
  typedef std::int32_t Bits __attribute__((vector_size(sizeof(F))));
  each[0] = {(decltype(F::v))((Bits)x.v << 16)};
  each[1] = {(decltype(F::v))((Bits)x.v & ~0xffff)};
}

template <class Word, int MR, int NV, bool first>
void panel(const Panel<Word>& p) {
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

  const auto step = [&](const Word* a, const Word* w, auto& acc) __attribute__((always_inline)) {
    F row[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) row[j] = words(w + j * W);
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i) {
      const F x = broadcast(a[i]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = multiply_add(Word{}, x, row[j], acc[i][j]);
    }
  };

  const Word* w = p.w;
  for (int64_t b = 0; b < p.blocks; ++b) {
    const Word* a = p.a + p.index[b] * p.depth * p.a_stride;
    int64_t k = 0;
    for (; k + lanes <= p.depth; k += lanes) {
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) {
        if (first) {
          __builtin_prefetch(w + weights_ahead);
          if (NV == 2) __builtin_prefetch(w + weights_ahead + W);
        }
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

template <class Word>
using PanelKernel = void (*)(const Panel<Word>&);

// The kernel for `rows` <= F::tile_rows(NV) rows. The first tile to use some weights brings them
// into the caches.
template <class Word, int NV, bool first, int MR = F::tile_rows(NV)>
inline PanelKernel<Word> panel_for(int rows) {
  if constexpr (MR > 1)
    if (rows != MR) return panel_for<Word, NV, first, MR - 1>(rows);
  return &panel<Word, MR, NV, first>;
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
