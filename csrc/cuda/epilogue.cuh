// The epilogue on the device: eight neighbouring outputs of one row at a time, in float.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/number.cuh"

namespace secateurs::cuda {

// NaN stays NaN, infinities pass as in the formulas.
__device__ inline float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::gelu:  // x Phi(x); erfc keeps the digits of the lower tail
      return x * 0.5f * erfcf(x * -0.70710678118654752f);
    case Activation::gelu_tanh: {  // x (1 + tanh u) / 2 = x / (1 + e^(-2u))
      const float u = x * (1.595769121606f + 0.0713548162726f * x * x);
      return x / (1 + expf(-u));
    }
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::silu:
      return x / (1 + expf(-x));
  }
  return x;
}

// Finishes the sums of outputs n .. n + 8 of row m and stores those that exist.
template <class T>
__device__ inline void finish8(const Epilogue& e, bool aligned, std::int64_t m, std::int64_t n,
                               float (&sum)[8]) {
  const int count = static_cast<int>(min(std::int64_t{8}, e.n - n));
  if (m >= e.m || count <= 0) return;
  const std::int64_t at = m * e.n + n;
  float operand[8];
  if (e.bias) {
    load8(operand, static_cast<const T*>(e.bias) + n, count, aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += operand[i];
  }
  if (e.activation != Activation::none) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] = activate(e.activation, sum[i]);
  }
  if (e.multiplier) {
    load8(operand, static_cast<const T*>(e.multiplier) + at, count, aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] *= operand[i];
  }
  if (e.residual) {
    load8(operand, static_cast<const T*>(e.residual) + at, count, aligned);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += operand[i];
  }
  store8(static_cast<T*>(e.y) + at, sum, count, aligned);
}

}  // namespace secateurs::cuda
