// What follows a linear's product: y = act(sums * scales + bias) * multiplier + residual, in float,
// rounded once. Only weights of codes have scales.
#pragma once

#include <type_traits>

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/math.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Where a tile of sums [rows][width], rows `stride` apart, lies in y.
struct Place {
  int64_t row, column;
  int rows;
  int64_t width;
};

template <class Problem, class = void>
constexpr bool has_scales = false;
template <class Problem>
constexpr bool has_scales<Problem, std::void_t<decltype(Problem::scales)>> = true;

// Columns `column` .. `column` + `vectors` vectors of y, or the first `n...` elements of one vector.
template <Activation activation, int vectors, class Problem, class... Count>
inline void finish_columns(const Problem& p, const float* sums, int64_t stride, int64_t row,
                           int64_t column, int rows, Count... n) {
  using T = std::remove_pointer_t<decltype(p.y)>;
  constexpr int W = F::width;
  F bias[vectors], scale[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    bias[v] = p.bias ? load(p.bias + column + v * W, n...) : zero();
    if constexpr (has_scales<Problem>) scale[v] = load(p.scales + column + v * W, n...);
  }
  // Copies: y might overlap `p` for all the compiler knows, which would be read again each time.
  T* y = p.y + row * p.n + column;
  const T* multiplier = p.multiplier ? p.multiplier + row * p.multiplier_stride + column : nullptr;
  const T* residual = p.residual ? p.residual + row * p.residual_stride + column : nullptr;
  const int64_t y_stride = p.n, multiplier_stride = p.multiplier_stride,
                residual_stride = p.residual_stride;
  for (int i = 0; i < rows; ++i) {
    F sum[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const F product = load(sums + i * stride + v * W, n...);
      if constexpr (has_scales<Problem>)
        sum[v] = activate<activation, T>(fma(product, scale[v], bias[v]));
      else
        sum[v] = activate<activation, T>(product + bias[v]);
    }
    if (multiplier)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v)
        sum[v] = sum[v] * load(multiplier + i * multiplier_stride + v * W, n...);
    if (residual)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v)
        sum[v] = sum[v] + load(residual + i * residual_stride + v * W, n...);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(y + i * y_stride + v * W, sum[v], n...);
  }
}

template <Activation activation, class Problem>
void finish_as(const Problem& p, const float* sums, int64_t stride, const Place& at) {
  constexpr int W = F::width;
  int64_t j = 0;
  for (; j + 2 * W <= at.width; j += 2 * W)
    finish_columns<activation, 2>(p, sums + j, stride, at.row, at.column + j, at.rows);
  for (; j + W <= at.width; j += W)
    finish_columns<activation, 1>(p, sums + j, stride, at.row, at.column + j, at.rows);
  if (j < at.width)
    finish_columns<activation, 1>(p, sums + j, stride, at.row, at.column + j, at.rows,
                                  static_cast<int>(at.width - j));
}

// `p` is any linear's problem: bias, activation, multiplier, residual, their strides, y and n.
template <class Problem>
void finish(const Problem& p, const float* sums, int64_t stride, const Place& at) {
  switch (p.activation) {
    case Activation::none:
      return finish_as<Activation::none>(p, sums, stride, at);
    case Activation::gelu:
      return finish_as<Activation::gelu>(p, sums, stride, at);
    case Activation::gelu_tanh:
      return finish_as<Activation::gelu_tanh>(p, sums, stride, at);
    case Activation::relu:
      return finish_as<Activation::relu>(p, sums, stride, at);
    case Activation::silu:
      return finish_as<Activation::silu>(p, sums, stride, at);
  }
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
