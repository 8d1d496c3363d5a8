// 4 floats in the compiler's own vectors: SSE2 on x86-64, NEON on ARM, and so on.
#pragma once

#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef std::int32_t Mask __attribute__((vector_size(16)));

struct F {
  static constexpr int width = 4;
  // The register tile of a panel: 12 of 16 registers hold sums.
  static constexpr int tile_rows(int vectors) { return 12 / vectors; }
  Floats v;
};

inline F zero() { return {Floats{}}; }
inline F set1(float x) { return {Floats{x, x, x, x}}; }
inline F iota() { return {Floats{0, 1, 2, 3}}; }
inline F load(const float* p) {
  F x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline F load(const float* p, int n) {
  F x = zero();
  for (int i = 0; i < n; ++i) {
    float each;  // copied: words of bf16 may lie between floats
    __builtin_memcpy(&each, p + i, sizeof each);
    x.v[i] = each;
  }
  return x;
}
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
inline void store(float* p, F x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x.v[i];
}

inline F load(const bf16* p, int n = F::width) {
  Mask x{};
  for (int i = 0; i < n; ++i) x[i] = static_cast<std::int32_t>(std::uint32_t{p[i].bits} << 16);
  return {(Floats)x};
}
// Rounds to the nearest, ties to even; NaN stays NaN.
inline void store(bf16* p, F x, int n = F::width) {
  for (int i = 0; i < n; ++i) {
    std::uint32_t bits;
    const float value = x.v[i];
    __builtin_memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    p[i].bits = static_cast<std::uint16_t>((value == value ? rounded : bits | 0x400000) >> 16);
  }
}

// Of every pair of bf16: the first, the second.
inline F lower(F pairs) { return {(Floats)((Mask)pairs.v << 16)}; }
inline F upper(F pairs) { return {(Floats)((Mask)pairs.v & -65536)}; }

inline F operator+(F a, F b) { return {a.v + b.v}; }
inline F operator-(F a, F b) { return {a.v - b.v}; }
inline F operator*(F a, F b) { return {a.v * b.v}; }
inline F operator/(F a, F b) { return {a.v / b.v}; }
inline F reciprocal(F a) { return set1(1) / a; }
inline F fma(F a, F b, F c) { return {a.v * b.v + c.v}; }
inline F select(Mask m, F yes, F no) { return {(Floats)(((Mask)yes.v & m) | ((Mask)no.v & ~m))}; }
inline Mask operator<(F a, F b) { return a.v < b.v; }
// Both return b where either is NaN.
inline F max(F a, F b) { return select(b < a, a, b); }
inline F min(F a, F b) { return select(a < b, a, b); }
inline F abs(F a) { return {(Floats)((Mask)a.v & 0x7fffffff)}; }

// Adding 1.5 * 2^23 leaves no bits for a fraction. For magnitudes below 2^22, which is all that is
// asked here.
inline F round(F a) {
  const F shift = set1(12582912.0f);
  return (a + shift) - shift;
}

// a * 2^n for whole n in [-252, 254], in two steps so that both powers are normal numbers.
inline F ldexp(F a, F n) {
  const Mask whole = __builtin_convertvector(n.v, Mask), half = whole >> 1;
  const auto power = [](Mask e) { return (Floats)((e + 127) << 23); };
  return {a.v * power(half) * power(whole - half)};
}

// Lane i, where bit i is set, takes the next of the first lanes of a; the others are zero.
inline F expand(F a, unsigned bits) {
  F x = zero();
  for (int i = 0, next = 0; i < F::width; ++i)
    if (bits >> i & 1) x.v[i] = a.v[next++];
  return x;
}
// The four floats at p, over and over.
inline F repeat4(const float* p) { return load(p); }

inline float total(F a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }

// Lane i: the total of r[i].
inline F totals(const F (&r)[4]) {
  return {Floats{total(r[0]), total(r[1]), total(r[2]), total(r[3])}};
}

// r[i][j] becomes r[j][i].
inline void transpose(F (&r)[4]) {
  const F a = r[0], b = r[1], c = r[2], d = r[3];
  for (int j = 0; j < 4; ++j) r[j].v = Floats{a.v[j], b.v[j], c.v[j], d.v[j]};
}

// 4 whole numbers of 32 bits.
struct I {
  // Rows of a tile of two vectors of sums, of which each has a float beside it.
  static constexpr int tile_rows = 2;
  Mask v;
};

inline I whole(std::int32_t x) { return {Mask{x, x, x, x}}; }
inline I operator+(I a, I b) { return {a.v + b.v}; }
inline F to_float(I a) { return {__builtin_convertvector(a.v, Floats)}; }
// To the nearest, ties to even.
inline I to_whole(F a) {
  // A product that is rounded here must have been rounded before.
  __asm__ volatile("" : "+m"(a.v));
  return {__builtin_convertvector(round(a).v, Mask)};
}
inline std::int32_t total(I a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }
inline I max(I a, I b) {
  const Mask more = a.v > b.v;
  return {(a.v & more) | (b.v & ~more)};
}
inline std::int32_t largest(I a) {
  std::int32_t most = a.v[0];
  for (int i = 1; i < F::width; ++i) most = most < a.v[i] ? a.v[i] : most;
  return most;
}
// What floats are made of.
inline I bits(F a) { return {(Mask)a.v}; }
inline void store(std::int8_t* p, I a) {
  for (int i = 0; i < F::width; ++i) p[i] = static_cast<std::int8_t>(a.v[i]);
}
inline I load(const Quad* p) {
  I x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline I repeat(const Quad& x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return whole(bits);
}
// sum[j] += the four products of w[j], without sign, and x[j], with sign.
inline I dot(I sum, I w, I x) {
  for (int j = 0; j < F::width; ++j)
    for (int byte = 0; byte < 4; ++byte)
      sum.v[j] += (w.v[j] >> 8 * byte & 0xff) * static_cast<std::int8_t>(x.v[j] >> 8 * byte & 0xff);
  return sum;
}

// Picks some of the 64 bytes of a group, four for each of up to 16 words, each byte by its place.
class Picker {
 public:
  Picker(const Quad* places, int words) : places(places), words(words) {}

  void operator()(const Quad* from, Quad* to) const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
    for (int word = 0; word < words; ++word)
      for (int i = 0; i < 4; ++i) to[word].codes[i] = bytes[places[word].codes[i]];
  }

 private:
  const Quad* places;
  int words;
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
