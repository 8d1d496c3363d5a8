// h = x + residual; y = LayerNorm(h) or RMSNorm(h), scaled by a weight and moved by a bias.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/launch.h"

namespace secateurs::cuda {

struct AddNorm {
  const void* x;         // [rows, width]; all are contiguous, of the kernel's dtype
  const void* residual;  // [rows, width] or null
  const void* weight;    // [width]
  const void* bias;      // [width] or null
  float eps;
  bool rms;   // divide by the root mean square, without taking the mean off
  void* sum;  // h, or null
  void* y;
  std::int64_t rows;
  int width;
  Dtype dtype;

  std::string text() const {
    return "add_norm of " + std::to_string(rows) + " rows of " + std::to_string(width);
  }
};

constexpr int WIDEST_NORM = 24 * 1024;  // a row stands in shared memory, in float

void add_norm(const AddNorm& p, const Launch& where);

}  // namespace secateurs::cuda
