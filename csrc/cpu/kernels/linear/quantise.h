// How a row of x is rounded to codes of 8 bits, one scale to each group of inputs.
#pragma once

#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int group_words = scaled_together / 4;  // of a group of inputs

template <class T, class Each>
__attribute__((always_inline)) inline float quantise_elements(const T* x, int count, Quad* codes,
                                                              const Each& each) {
  constexpr int W = F::width, vectors = scaled_together / W;
  F v[vectors];
  I most = whole(0);  // of magnitudes: as whole numbers too, NaN and infinity being the largest
#pragma GCC unroll 16
  for (int i = 0; i < vectors; ++i) {
    const int here = count - i * W;
    v[i] = here >= W ? load(x + i * W) : here > 0 ? load(x + i * W, here) : zero();
    most = max(bits(abs(v[i])), most);
  }
  const std::int32_t top_bits = largest(most);
  float top;
  __builtin_memcpy(&top, &top_bits, sizeof top);
  const float scale = top / 127;
  if (!(top <= __FLT_MAX__) || scale < __FLT_MIN__) {
    __builtin_memset(codes, 0, scaled_together);
    return top <= 1 ? 0 : __builtin_nanf("");
  }
  const F inverse = set1(127 / top);
  auto* bytes = reinterpret_cast<std::int8_t*>(codes);
#pragma GCC unroll 16
  for (int i = 0; i < vectors; ++i) {
    const I code = to_whole(v[i] * inverse);
    store(bytes + i * W, code);
    each(2 * i / vectors, code);
  }
  return scale;
}

// The first `count` elements at x to codes of one group, with zeros behind them. Returns their scale;
// gives each vector of codes to `each`, with the half of the group that it lies in.
template <class T, class Each>
inline float quantise_group(const T* x, int count, Quad* codes, const Each& each) {
  // Most groups are whole, and compiled for that.
  return count == scaled_together ? quantise_elements(x, scaled_together, codes, each)
                                  : quantise_elements(x, count, codes, each);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
