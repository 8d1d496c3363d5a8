// What every linear does with a sum before it is stored: act(sum + bias) * multiplier + residual.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/activation.h"

namespace secateurs::cuda {

// bias [n], multiplier and residual [m, n], each or null; y [m, n]. All are contiguous and of the
// kernel's dtype.
struct Epilogue {
  const void* bias;
  Activation activation;
  const void* multiplier;
  const void* residual;
  void* y;
  std::int64_t m, n;

  // Whether groups of eight neighbours are 16-byte aligned in all of them.
  bool aligned() const {
    std::uintptr_t bits = static_cast<std::uintptr_t>(n) * 2;
    for (const void* p : {bias, multiplier, residual, static_cast<const void*>(y)})
      bits |= reinterpret_cast<std::uintptr_t>(p);
    return bits % 16 == 0;
  }
};

}  // namespace secateurs::cuda
