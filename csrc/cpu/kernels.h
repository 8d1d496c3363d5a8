// The kernels of one instruction set, and the problems they solve.
#pragma once

#include <cstdint>

namespace secateurs::cpu {

// The upper half of a float.
struct bf16 {
  std::uint16_t bits;
};

// Two neighbouring inputs, the first in the lower half: the unit in which products of bf16 read.
struct Pair {
  std::uint32_t bits;
};

enum class Dtype : int { f32, bf16 };

enum class Activation : int { none, gelu, gelu_tanh, relu, silu };

// y = act(x W^T + bias) * gate + residual, W [n, k] stored as the tiles that are kept (BSR).
// Block row r holds outputs r*bn .. r*bn + bn, block column c inputs c*bk .. c*bk + bk; outputs from
// n on are padding and are not written, inputs from k on meet zeros.
template <class T>
struct BlockSparseLinear {
  const T* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride, m, n, k;
  const T* values;              // [nnz, bk, bn]; bf16: in pairs of inputs, [nnz, bk / 2, bn, 2]
  const std::int32_t* indptr;   // [rows + 1]
  const std::int32_t* indices;  // [nnz], ascending in a row
  std::int64_t rows, bk, bn;
  const T* bias;  // [n] or null
  Activation activation;
  const T* gate;      // [m, n], rows gate_stride apart, or null
  const T* residual;  // the same
  std::int64_t gate_stride, residual_stride;
  T* y;  // [m, n], contiguous
  int threads;
};

struct Strides {
  std::int64_t batch, head, row;
};

// out[b, i, h] = softmax(scale q[b, h, i] k[b, g]^T + mask) v[b, g], g = kv_of[h]; strides count
// elements, and the last dimension of every tensor is contiguous. A query that may attend to nothing
// yields zeros.
template <class T>
struct Attention {
  const T *q, *k, *v;  // [batch, heads, queries, dim], [batch, kv_heads, keys, dim]
  Strides q_stride, k_stride, v_stride;
  std::int64_t batch, heads, queries, keys, dim;
  const std::int32_t* kv_of;  // [heads]
  const bool* key_mask;       // [batch, keys], true: may be attended; or null
  const float* mask;          // added to the scaled scores; or null
  Strides mask_stride;        // zero where the mask is broadcast
  bool causal;                // query i sees keys up to i + keys - queries
  float scale;
  T* out;  // [batch, queries, heads, dim], contiguous
  int threads;
};

struct Kernels {
  const char* name;
  void (*block_sparse_linear)(const BlockSparseLinear<float>&);
  void (*block_sparse_linear_bf16)(const BlockSparseLinear<bf16>&);
  void (*attention)(const Attention<float>&);
};

}  // namespace secateurs::cpu
