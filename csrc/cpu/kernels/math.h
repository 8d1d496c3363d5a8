// Exponentials and activations on vectors. Relative error below 1e-6; infinities and NaN pass as in
// the formulas.
#pragma once

#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

template <int N>
inline F polynomial(F x, const float (&c)[N]) {
  F y = set1(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, set1(c[i]));
  return y;
}

// 2^x = 2^n 2^f, n whole, |f| <= 1/2; 2^0 is 1 exactly. Below 2^-126 it is 0: numbers that small
// take a hundred times as long. The upper clamp lies where the result is infinite; NaN passes.
inline F exp2(F x) {
  constexpr float c[] = {1.0f,          0.693147004f,   0.240222439f,
                         0.0555073358f, 0.00967144221f, 0.00132645108f};
  const F y = min(set1(130), max(set1(-126), x)), n = round(y);
  return select(x < set1(-126), zero(), ldexp(polynomial(y - n, c), n));
}

// e^x = 2^n e^r. ln 2 is subtracted in two parts, the first so short that n times it is exact.
inline F exp(F x) {
  constexpr float c[] = {1.0f,         1.0f,         0.4999999f,   0.1666642f,
                         0.041668225f, 0.008374816f, 0.0013836841f};
  x = min(set1(90), max(set1(-105), x));
  const F n = round(x * set1(1.44269504f));
  const F r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  return ldexp(polynomial(r, c), n);
}

// x Phi(x). The tail Phi(-a) = e^(-a^2/2) g(a) with g a polynomial in 1 / (1 + 0.3 a) (fitted on 0
// <= a <= 14.5, where the tail underflows), so that large negative x keep their digits, unlike in 1
// + erf.
inline F gelu(F x) {
  constexpr float c[] = {7.3729002e-06f, 0.119484194f, 0.121945344f,  0.0945855156f, 0.142766178f,
                         -0.0768410936f, 0.228953123f, -0.169308156f, 0.0384075418f};
  const F a = abs(x);
  const F t = set1(1) / fma(a, set1(0.3f), set1(1));
  const F tail = exp(x * x * set1(-0.5f)) * polynomial(t, c);
  return x * select(x < zero(), tail, set1(1) - tail);
}

inline F silu(F x) { return x / (set1(1) + exp(zero() - x)); }

// x (1 + tanh u) / 2 = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
inline F gelu_tanh(F x) {
  const F u = x * fma(x * x, set1(0.0713548162726f), set1(1.595769121606f));
  return x / (set1(1) + exp(zero() - u));
}

// The same for results that are rounded to bfloat16: relative error below 5e-4, an eighth of that
// rounding.

inline F exp2_bf16(F x) {
  constexpr float c[] = {0.99992806f, 0.69326097f, 0.24261113f, 0.055171616f};
  x = min(set1(130), max(set1(-152), x));
  const F n = round(x);
  return ldexp(polynomial(x - n, c), n);
}

#ifdef SECATEURS_PAIR_PRODUCTS
// The same, relative error below 9e-5, with 2^0 = 1 exactly, so that sums whose largest score stays
// are left alone, and numbers below 2^-126 as they come. For x = -inf the fraction is 0, and the
// scaling by 2^-inf gives 0.
inline F exp2_short(F x) {
  constexpr float c[] = {1.0f, 0.69511658f, 0.227646038f, 0.0770660862f};
  return ldexp(polynomial(fraction(x), c), x);
}
#endif

inline F gelu_bf16(F x) {
  constexpr float c[] = {-1.3593207e-4f, 0.1193694f, 0.13407893f, 0.039641935f, 0.20715378f};
  const F t = reciprocal(fma(abs(x), set1(0.3f), set1(1)));
  const F tail = exp2_bf16(x * x * set1(-0.5f * 1.44269504f)) * polynomial(t, c);
  return x * select(x < zero(), tail, set1(1) - tail);
}

inline F silu_bf16(F x) { return x * reciprocal(set1(1) + exp2_bf16(x * set1(-1.44269504f))); }

inline F gelu_tanh_bf16(F x) {
  const F u = x * fma(x * x, set1(0.10294324f), set1(2.3022082f));
  return x * reciprocal(set1(1) + exp2_bf16(zero() - u));
}

// For a result of type T.
template <Activation activation, class T>
inline F activate(F x) {
  constexpr bool whole = sizeof(T) == sizeof(float);
  if constexpr (activation == Activation::gelu) return whole ? gelu(x) : gelu_bf16(x);
  if constexpr (activation == Activation::gelu_tanh)
    return whole ? gelu_tanh(x) : gelu_tanh_bf16(x);
  if constexpr (activation == Activation::relu) return max(zero(), x);
  if constexpr (activation == Activation::silu) return whole ? silu(x) : silu_bf16(x);
  return x;
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
