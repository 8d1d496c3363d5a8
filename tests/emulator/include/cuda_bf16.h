#pragma once

#include <cstdint>
#include <cstring>

// The upper half of a float, rounded to nearest, ties to even.
struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    std::uint32_t word;
    std::memcpy(&word, &x, 4);
    const bool nan = x != x;
    bits = static_cast<std::uint16_t>(nan ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const std::uint32_t word = std::uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};

inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
