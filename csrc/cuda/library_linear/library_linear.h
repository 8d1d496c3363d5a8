// y = act(x W^T + bias) * multiplier + residual for few rows of x, with W's p x q blocks each following one
// pattern of a small library.
#pragma once

#include <string>

#include "cuda/cut.h"
#include "cuda/epilogue.h"
#include "cuda/launch.h"

namespace secateurs::cuda {

struct LibraryLinear {
  const void* x;  // [m <= 16, k], rows x_stride apart
  std::int64_t x_stride;
  const void* values;         // [n / p, k / q, ones], a block's entries row by row of its pattern
  const std::uint8_t* codes;  // [n / p, k / q], the pattern of each block; on a 16-byte boundary
  const bool* library;        // [patterns <= 16, p, q], as many ones in each
  int k, p, q, patterns, ones;
  Epilogue epilogue;
  Dtype dtype;
  float* partial = nullptr;  // as many as partial_sums() says

  std::string text() const {
    return "library_linear m=" + std::to_string(epilogue.m) + " n=" + std::to_string(epilogue.n) +
           " k=" + std::to_string(k) + ", " + std::to_string(ones) + " of " + std::to_string(p) +
           "x" + std::to_string(q);
  }
};

// How a problem is cut on `device`, the current GPU.
Cut cut(const LibraryLinear& p, int device);
std::int64_t partial_sums(const LibraryLinear& p, const Cut& cut);  // floats

void library_linear(const LibraryLinear& p, const Cut& cut, const Launch& where);

}  // namespace secateurs::cuda
