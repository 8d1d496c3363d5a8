// y = act(x W^T + bias) * multiplier + residual with W as stacks of inputs: the problem, and how it is cut.
//
// The outputs come in rows of `bn`. A row's stack is a contiguous matrix of inputs by bn outputs, cut
// into blocks of `bk` inputs, and says for each block where in x its inputs stand:
//
//          inputs of x                  stack of a row
//     . . [c0] . [c1] . . [c2]             [ b0 ]
//     . . [  ] . [  ] . . [  ]      @      [ b1 ]     =   y[:, row * bn : (row + 1) * bn]
//     . . [  ] . [  ] . . [  ]             [ b2 ]
//
// A block-sparse weight has blocks of 16 inputs and more; vector N:M is the case of single inputs.
#pragma once

#include <string>

#include "cuda/cut.h"
#include "cuda/epilogue.h"
#include "cuda/launch.h"

namespace secateurs::cuda {

struct StackedLinear {
  const void* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride;
  const void* values;           // [blocks, bk, bn]
  const std::int32_t* indptr;   // [rows + 1], the blocks of each row; null: as many in each
  const std::int32_t* indices;  // [blocks], which block of inputs each is
  int rows, blocks, bn, bk, k;
  Epilogue epilogue;
  Dtype dtype;
  float* partial = nullptr;  // as many as partial_sums() says

  std::string text() const;
};

// How the kernel of a problem cuts it on `device`, the current GPU. The parts are even ones of all
// stacks together, whatever rows the cuts fall into: no row is too long.
Cut cut(const StackedLinear& p, int device);
// Floats of working memory: for parts, and of single inputs for many rows of x, turned.
std::int64_t partial_sums(const StackedLinear& p, const Cut& cut);
std::int64_t turned_numbers(const StackedLinear& p, const Cut& cut);  // of 16 bits, an even number

void block_sparse_linear(const StackedLinear& p, const Cut& cut, const Launch& where);
void vector_linear(const StackedLinear& p, const Cut& cut, const Launch& where);

// Thread blocks of tiles of bm rows that can be under way at once on `device`, the current GPU.
std::int64_t block_sparse_linear_at_once(const StackedLinear& p, int bm, int device);
std::int64_t vector_linear_at_once(const StackedLinear& p, int bm, int device);

}  // namespace secateurs::cuda
