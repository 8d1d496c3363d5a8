// 16-bit numbers: to float and back, eight at a time as they move through memory.
#pragma once

#include <cstring>

#include "cuda/ptx.cuh"

namespace secateurs::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(ptx::Half x) { return __half2float(x); }
__device__ inline float to_float(ptx::BFloat x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, ptx::BFloat>) {
    return __float2bfloat16(x);
  } else if constexpr (std::is_same_v<T, ptx::Half>) {
    return __float2half(x);
  } else {
    return x;
  }
}

// Two numbers in a word, the first in the lower half.
template <class T>
__device__ inline std::uint32_t packed(float low, float high) {
  const T pair[2] = {from_float<T>(low), from_float<T>(high)};
  std::uint32_t word;
  memcpy(&word, pair, 4);
  return word;
}

// The first `count` of eight neighbours; in one access where they are all wanted and `aligned` to
// 16 bytes (for float, two).
template <class T>
__device__ inline void load8(float (&x)[8], const T* from, int count, bool aligned) {
  if (aligned && count >= 8) {
    alignas(16) T numbers[8];
#pragma unroll
    for (int i = 0; i < int(sizeof numbers / 16); ++i)
      reinterpret_cast<uint4*>(numbers)[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(numbers[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < count ? to_float(from[i]) : 0.f;
  }
}

template <class T>
__device__ inline void store8(T* to, const float (&x)[8], int count, bool aligned) {
  if (aligned && count >= 8) {
    alignas(16) T numbers[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) numbers[i] = from_float<T>(x[i]);
#pragma unroll
    for (int i = 0; i < int(sizeof numbers / 16); ++i)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(numbers)[i];
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) to[i] = from_float<T>(x[i]);
  }
}

}  // namespace secateurs::cuda
