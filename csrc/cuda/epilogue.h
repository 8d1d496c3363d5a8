// What every linear does with a sum before it is stored: act(sum + bias) * gate + residual.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace secateurs::cuda {

enum class Activation : int { none, gelu, gelu_tanh, relu, silu };

// bias [n], gate and residual [m, n], each or null; y [m, n]. All contiguous, of the kernel's dtype.
struct Epilogue {
  const void* bias;
  Activation activation;
  const void* gate;
  const void* residual;
  void* y;
  std::int64_t m, n;

  // Whether groups of eight neighbours are 16-byte aligned in all of them.
  bool aligned() const {
    std::uintptr_t bits = static_cast<std::uintptr_t>(n) * 2;
    for (const void* p : {bias, gate, residual, static_cast<const void*>(y)})
      bits |= reinterpret_cast<std::uintptr_t>(p);
    return bits % 16 == 0;
  }
};

}  // namespace secateurs::cuda
