// What follows a linear's product: y = act(sums + bias) * gate + residual, in float32, rounded once.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/math.h"
#include "cpu/kernels.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Where a tile of sums [rows][width], rows `stride` apart, lies in y.
struct Place {
  int64_t row, column;
  int rows;
  int64_t width;
};

template <Activation activation, class Problem>
inline void finish_as(const Problem& p, const float* sums, int64_t stride, const Place& at) {
  constexpr int W = F::width;
  for (int i = 0; i < at.rows; ++i) {
    const int64_t row = at.row + i;
    const float* sum = sums + i * stride;
    const auto vector = [&](int64_t j, auto... n) {
      F y = load(sum + j, n...);
      const int64_t column = at.column + j;
      if (p.bias) y = y + load(p.bias + column, n...);
      y = activate(activation, y);
      if (p.gate) y = y * load(p.gate + row * p.gate_stride + column, n...);
      if (p.residual) y = y + load(p.residual + row * p.residual_stride + column, n...);
      store(p.y + row * p.n + column, y, n...);
    };
    int64_t j = 0;
    for (; j + W <= at.width; j += W) vector(j);
    if (j < at.width) vector(j, static_cast<int>(at.width - j));
  }
}

// `p` is any linear's problem: bias, activation, gate, residual, their strides, y and n.
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
