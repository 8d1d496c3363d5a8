// 8 floats in one AVX2 register, with fused multiply-add.
#pragma once

#include <immintrin.h>

#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

struct F {
  static constexpr int width = 8;
  // The register tile of a panel: 12 of 16 registers hold sums.
  static constexpr int tile_rows(int vectors) { return 12 / vectors; }
  __m256 v;
};

struct Mask {
  __m256 v;
};

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F zero() { return {_mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x)}; }
inline F iota() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.v); }

// By pieces: masked stores are microcoded on some CPUs.
inline void store(float* p, F x, int n) {
  if (n >= 8) return store(p, x);
  __m128 part = _mm256_castps256_ps128(x.v);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(x.v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}

inline F load(const bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline F load(const bf16* p, int n) {
  bf16 whole[8] = {};
  __builtin_memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(bf16));
  return load(whole);
}
// Rounds to the nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, F x) {
  const __m256i bits = _mm256_castps_si256(x.v), one = _mm256_set1_epi32(1);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline void store(bf16* p, F x, int n) {
  bf16 whole[8];
  store(whole, x);
  __builtin_memcpy(p, whole, static_cast<std::size_t>(n) * sizeof(bf16));
}

// Of every pair of bf16: the first, the second.
inline F lower(F pairs) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs.v), 16))};
}
inline F upper(F pairs) {
  return {_mm256_and_ps(pairs.v, _mm256_castsi256_ps(_mm256_set1_epi32(-65536)))};
}

inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F reciprocal(F a) { return set1(1) / a; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Both return b where either is NaN.
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F round(F a) { return {_mm256_round_ps(a.v, 8)}; }
inline Mask operator<(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline F select(Mask m, F yes, F no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }

// a * 2^n for whole n in [-252, 254], in two steps so that both powers are normal numbers.
inline F ldexp(F a, F n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(whole, half)))};
}

// For each set of lanes, which of the first ones each of them takes; negative elsewhere.
struct Expansion {
  std::int8_t from[256][8] = {};
  constexpr Expansion() {
    for (int bits = 0; bits < 256; ++bits)
      for (int i = 0, next = 0; i < 8; ++i)
        from[bits][i] = static_cast<std::int8_t>(bits >> i & 1 ? next++ : -1);
  }
};
constexpr Expansion expansion;

// Lane i, where bit i is set, takes the next of the first lanes of a; the others are zero.
inline F expand(F a, unsigned bits) {
  const __m256i from =
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(expansion.from[bits])));
  return {_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)),
                           _mm256_permutevar8x32_ps(a.v, from))};
}
// The four floats at p, over and over.
inline F repeat4(const float* p) {
  return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))};
}

inline float total(F a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

// Lane i: the total of r[i].
inline F totals(const F (&r)[8]) {
  const auto four = [&](int i) {
    return _mm256_hadd_ps(_mm256_hadd_ps(r[i].v, r[i + 1].v),
                          _mm256_hadd_ps(r[i + 2].v, r[i + 3].v));
  };
  const __m256 low = four(0), high = four(4);
  return {_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                        _mm256_permute2f128_ps(low, high, 0x31))};
}

// r[i][j] becomes r[j][i].
inline void transpose(F (&r)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    b[4 * i] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0x44);
    b[4 * i + 1] = _mm256_shuffle_ps(a[4 * i], a[4 * i + 2], 0xee);
    b[4 * i + 2] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0x44);
    b[4 * i + 3] = _mm256_shuffle_ps(a[4 * i + 1], a[4 * i + 3], 0xee);
  }
  // b[4g + c] holds, in 128-bit lane l, column 4l + c of rows 4g .. 4g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    r[c].v = _mm256_permute2f128_ps(b[c], b[c + 4], 0x20);
    r[c + 4].v = _mm256_permute2f128_ps(b[c], b[c + 4], 0x31);
  }
}

// 8 whole numbers of 32 bits.
struct I {
  // Rows of a tile of two vectors of sums, of which each has a float beside it.
  static constexpr int tile_rows = 4;
  __m256i v;
};

inline I whole(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I operator+(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.v)}; }
// To the nearest, ties to even.
inline I to_whole(F a) { return {_mm256_cvtps_epi32(a.v)}; }
inline std::int32_t total(I a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline I max(I a, I b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline std::int32_t largest(I a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
// What floats are made of.
inline I bits(F a) { return {_mm256_castps_si256(a.v)}; }
inline void store(std::int8_t* p, I a) {
  const __m128i half =
      _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline I load(const Quad* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline I repeat(const Quad& x) {
  // GCC would load a dozen of them into general registers, and spill those.
  I all;
  __asm__("vpbroadcastd %1, %0" : "=x"(all.v) : "m"(x));
  return all;
}
// sum[j] += the four products of w[j], without sign, and x[j], with sign.
inline I dot(I sum, I w, I x) {
#ifdef __AVXVNNI__
  return {_mm256_dpbusd_avx_epi32(sum.v, w.v, x.v)};
#else
  // In 16 bits, first and third, then second and fourth: a product of bytes would saturate.
  const __m256i w02 = _mm256_and_si256(w.v, _mm256_set1_epi32(0x00ff00ff));
  const __m256i x02 = _mm256_srai_epi16(_mm256_slli_epi16(x.v, 8), 8);
  const __m256i w13 = _mm256_srli_epi16(w.v, 8), x13 = _mm256_srai_epi16(x.v, 8);
  return {_mm256_add_epi32(_mm256_add_epi32(sum.v, _mm256_madd_epi16(w02, x02)),
                           _mm256_madd_epi16(w13, x13))};
#endif
}

// Picks some of the 64 bytes of a group, four for each of up to 16 words, each byte by its place.
class Picker {
 public:
  Picker(const Quad* places, int words) : halves(words > 8 ? 2 : 1) {
    const __m256i word = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int half = 0; half < halves; ++half) {
      const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(words - 8 * half), word);
      const __m256i place =
          _mm256_maskload_epi32(reinterpret_cast<const int*>(places + 8 * half), there);
      for (int i = 0; i < 4; ++i) {
        // A byte with the highest bit set picks zero.
        const __m256i inside = _mm256_sub_epi8(place, _mm256_set1_epi8(static_cast<char>(16 * i)));
        const __m256i outside = _mm256_cmpgt_epi8(inside, _mm256_set1_epi8(15));
        in_lane[half][i] = _mm256_or_si256(inside, outside);
      }
    }
  }

  void operator()(const Quad* from, Quad* to) const {
    for (int half = 0; half < halves; ++half) {
      __m256i x = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i lane = _mm256_broadcastsi128_si256(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 4 * i)));
        x = _mm256_or_si256(x, _mm256_shuffle_epi8(lane, in_lane[half][i]));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8 * half), x);
    }
  }

 private:
  int halves;
  __m256i in_lane[2][4];
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
