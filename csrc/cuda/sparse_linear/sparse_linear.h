// y = act(x W^T + bias) * multiplier + residual with W 2:4: of every four neighbouring inputs, an output
// keeps two.
#pragma once

#include <string>

#include "cuda/cut.h"
#include "cuda/epilogue.h"
#include "cuda/launch.h"

namespace secateurs::cuda {

struct SparseLinear {
  const void* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride;
  const void* values;  // [n, k / 2]
  // [n / 16, k / 32, 8, 2]: the places, two bits each, of what rows g (low half) and g + 8 (high) of
  // a tile of 16 outputs keep of inputs 0-15 and of 16-31.
  const std::uint32_t* kept;
  int k;              // a multiple of 32
  Epilogue epilogue;  // n a multiple of 16
  Dtype dtype;
  float* partial = nullptr;  // as many as partial_sums() says

  std::string text() const {
    return "sparse_linear m=" + std::to_string(epilogue.m) + " n=" + std::to_string(epilogue.n) +
           " k=" + std::to_string(k);
  }
};

// How a problem is cut on `device`, the current GPU.
Cut cut(const SparseLinear& p, int device);
std::int64_t partial_sums(const SparseLinear& p, const Cut& cut);  // floats

void sparse_linear(const SparseLinear& p, const Cut& cut, const Launch& where);

}  // namespace secateurs::cuda
