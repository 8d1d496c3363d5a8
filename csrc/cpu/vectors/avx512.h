// 16 floats in one AVX-512 register; conversions to bfloat16 by the CPU's own where compiled for it.
#pragma once

#include <immintrin.h>

#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

struct F {
  static constexpr int width = 16;
  // The register tile of a panel: 24 of 32 registers hold sums, whether one or two vectors wide.
  static constexpr int tile_rows(int vectors) { return 24 / vectors; }
  __m512 v;
};
using Mask = __mmask16;

inline Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }

inline F zero() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F iota() { return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline void store(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x.v); }

inline __m256i rounded_to_bf16(F x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x.v);
#else
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
inline F from_bf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
inline F load(const bf16* p) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load(const bf16* p, int n) { return from_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
// Rounds to the nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded_to_bf16(x));
}
inline void store(bf16* p, F x, int n) {
  _mm256_mask_storeu_epi16(p, first(n), rounded_to_bf16(x));
}

#ifdef __AVX512BF16__
  #define SECATEURS_PAIR_PRODUCTS
// sum[j] += a[2j] b[2j] + a[2j + 1] b[2j + 1] of bf16.
inline F dot(F sum, F a, F b) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)}; }
// Of a thread, while it lives: zeros in place of numbers below 2^-126, which would take a hundred
// times as long.
class FlushToZero {
 public:
  FlushToZero() { _mm_setcsr(before | _MM_FLUSH_ZERO_ON); }
  ~FlushToZero() { _mm_setcsr(before); }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
  const unsigned before = _mm_getcsr();
};
// Lane i: low[i], then high[i], rounded to bfloat16.
inline F paired(F low, F high) {
  constexpr auto both = [](int i) { return (16 + i) << 16 | i; };
  const __m512i order = _mm512_setr_epi32(both(0), both(1), both(2), both(3), both(4), both(5),
                                          both(6), both(7), both(8), both(9), both(10), both(11),
                                          both(12), both(13), both(14), both(15));
  const auto side_by_side = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(order, side_by_side))};
}
// The first `n` elements at p, 32 of them where there are more, then zeros: each two neighbours a
// pair, rounded to bfloat16.
inline F pairs(const bf16* p, int64_t n) {
  const __mmask32 there = n < 32 ? (1u << n) - 1 : ~0u;
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(there, p))};
}
inline F pairs(const float* p, int64_t n) {
  const __mmask32 there = n < 32 ? (1u << n) - 1 : ~0u;
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<Mask>(there), p);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<Mask>(there >> 16), p + 16);
  return {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low))};
}
#else
// Of every pair of bf16: the first, the second.
inline F lower(F pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs.v), 16))};
}
inline F upper(F pairs) {
  const __m512i bits = _mm512_castps_si512(pairs.v);
  return {_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-65536)))};
}
#endif

inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
// Relative error below 2^-14.
inline F reciprocal(F a) { return {_mm512_rcp14_ps(a.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Both return b where either is NaN.
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, 8)}; }
// a - floor(a).
inline F fraction(F a) { return {_mm512_reduce_ps(a.v, 1)}; }
inline F ldexp(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline Mask operator<(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline F select(Mask m, F yes, F no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }

// Lane i, where bit i is set, takes the next of the first lanes of a; the others are zero.
inline F expand(F a, unsigned bits) {
  return {_mm512_maskz_expand_ps(static_cast<Mask>(bits), a.v)};
}
// The four floats at p, over and over.
inline F repeat4(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }

inline float total(F a) {
  __m512 x = _mm512_add_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4e));
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
  return _mm512_cvtss_f32(x);
}

// Lane i: the total of r[i]. Each step adds halves, quarters and so on of two vectors, those of the
// first in the lanes where they already are.
inline F totals(const F (&r)[16]) {
  __m512 x[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    x[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, r[i].v, r[i + 8].v),
                         _mm512_shuffle_f32x4(r[i].v, r[i + 8].v, 0x4e));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 others = _mm512_mask_blend_ps(0xf0f0, x[i + 4], x[i]);
    x[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, x[i], x[i + 4]),
                         _mm512_shuffle_f32x4(others, others, 0xb1));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    x[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x[i], x[i + 2]),
                         _mm512_shuffle_ps(x[i], x[i + 2], 0x4e));
  const __m512 others = _mm512_mask_blend_ps(0xaaaa, x[1], x[0]);
  return {_mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, x[0], x[1]), _mm512_permute_ps(others, 0xb1))};
}

// r[i][j] becomes r[j][i].
inline void transpose(F (&r)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  const auto pair = [](__m512 x, __m512 y, bool high) {
    const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
  };
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[4 * i] = pair(a[4 * i], a[4 * i + 2], false);
    b[4 * i + 1] = pair(a[4 * i], a[4 * i + 2], true);
    b[4 * i + 2] = pair(a[4 * i + 1], a[4 * i + 3], false);
    b[4 * i + 3] = pair(a[4 * i + 1], a[4 * i + 3], true);
  }
  // b[4g + c] holds, in 128-bit lane l, column 4l + c of rows 4g .. 4g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 lo = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88);  // lanes 0, 2
    const __m512 hi = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
    const __m512 lo_odd = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);  // lanes 1, 3
    const __m512 hi_odd = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
    r[c].v = _mm512_shuffle_f32x4(lo, hi, 0x88);
    r[c + 8].v = _mm512_shuffle_f32x4(lo, hi, 0xdd);
    r[c + 4].v = _mm512_shuffle_f32x4(lo_odd, hi_odd, 0x88);
    r[c + 12].v = _mm512_shuffle_f32x4(lo_odd, hi_odd, 0xdd);
  }
}

// 16 whole numbers of 32 bits.
struct I {
  // Rows of a tile of two vectors of sums, of which each has a float beside it.
  static constexpr int tile_rows = 6;
  __m512i v;
};

inline I whole(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
// To the nearest, ties to even.
inline I to_whole(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline std::int32_t total(I a) { return _mm512_reduce_add_epi32(a.v); }
inline I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline std::int32_t largest(I a) { return _mm512_reduce_max_epi32(a.v); }
// What floats are made of.
inline I bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline void store(std::int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
inline I load(const Quad* p) { return {_mm512_loadu_si512(p)}; }
inline I repeat(const Quad& x) {
  // GCC would load a dozen of them into general registers, and spill those.
  I all;
  __asm__("vpbroadcastd %1, %0" : "=v"(all.v) : "m"(x));
  return all;
}
// sum[j] += the four products of w[j], without sign, and x[j], with sign.
inline I dot(I sum, I w, I x) {
#ifdef __AVX512VNNI__
  return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)};
#else
  // In 16 bits, first and third, then second and fourth: a product of bytes would saturate.
  const __m512i w02 = _mm512_and_si512(w.v, _mm512_set1_epi32(0x00ff00ff));
  const __m512i x02 = _mm512_srai_epi16(_mm512_slli_epi16(x.v, 8), 8);
  const __m512i w13 = _mm512_srli_epi16(w.v, 8), x13 = _mm512_srai_epi16(x.v, 8);
  return {_mm512_add_epi32(_mm512_add_epi32(sum.v, _mm512_madd_epi16(w02, x02)),
                           _mm512_madd_epi16(w13, x13))};
#endif
}

// Picks some of the 64 bytes of a group, four for each of up to 16 words, each byte by its place.
class Picker {
 public:
  Picker(const Quad* places, int words) : place(_mm512_maskz_loadu_epi32(first(words), places)) {
#ifndef __AVX512VBMI__
    const __m512i lane = _mm512_and_si512(_mm512_srli_epi16(place, 4), _mm512_set1_epi8(3));
    for (int i = 0; i < 4; ++i)
      in_lane[i] = _mm512_cmpeq_epi8_mask(lane, _mm512_set1_epi8(static_cast<char>(i)));
#endif
  }

  void operator()(const Quad* from, Quad* to) const {
    const __m512i all = _mm512_loadu_si512(from);
#ifdef __AVX512VBMI__
    _mm512_storeu_si512(to, _mm512_permutexvar_epi8(place, all));
#else
    const auto lane = [&](__m512i before, __mmask64 here, __m512i of) {
      return _mm512_mask_shuffle_epi8(before, here, of, place);
    };
    __m512i x = _mm512_shuffle_epi8(_mm512_shuffle_i32x4(all, all, 0), place);
    x = lane(x, in_lane[1], _mm512_shuffle_i32x4(all, all, 0x55));
    x = lane(x, in_lane[2], _mm512_shuffle_i32x4(all, all, 0xaa));
    _mm512_storeu_si512(to, lane(x, in_lane[3], _mm512_shuffle_i32x4(all, all, 0xff)));
#endif
  }

 private:
  __m512i place;
#ifndef __AVX512VBMI__
  __mmask64 in_lane[4];
#endif
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
