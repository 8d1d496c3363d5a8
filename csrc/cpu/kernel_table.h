// The kernels of one instruction set.
#pragma once

#include "cpu/problems.h"

namespace secateurs::cpu {

struct Kernels {
  const char* name;
  void (*block_sparse_linear)(const BlockSparseLinear<float>&);
  void (*block_sparse_linear_bf16)(const BlockSparseLinear<bf16>&);
  void (*int8_linear)(const Int8Linear<float>&);
  void (*int8_linear_bf16)(const Int8Linear<bf16>&);
  void (*int8_vector_linear)(const Int8VectorLinear<float>&);
  void (*int8_vector_linear_bf16)(const Int8VectorLinear<bf16>&);
  void (*attention)(const Attention<float>&);
  void (*attention_bf16)(const Attention<bf16>&);
  void (*pattern_linear)(const PatternLinear<float>&);
  void (*pattern_linear_bf16)(const PatternLinear<bf16>&);
  int pattern_together_bf16;  // inputs of an output side by side
  void (*library_linear)(const LibraryLinear<float>&);
  void (*library_linear_bf16)(const LibraryLinear<bf16>&);
  void (*add_norm)(const AddNorm<float>&);
  void (*add_norm_bf16)(const AddNorm<bf16>&);
};

}  // namespace secateurs::cpu
