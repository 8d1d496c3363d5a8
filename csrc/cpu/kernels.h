// The kernels of one instruction set, and the problems they solve.
#pragma once

#include <cstdint>

namespace secateurs::cpu {

// The upper half of a float.
struct bf16 {
  std::uint16_t bits;
};

enum class Dtype : int { f32, bf16 };

enum class Activation : int { none, gelu, gelu_tanh, relu, silu };

// y = act(x W^T + bias) * gate + residual, W [n, k] stored as the tiles that are kept (BSR).
// Block row r holds outputs r*bn .. r*bn + bn; outputs from n on are padding and are not written.
template <class T>
struct BlockSparseLinear {
  const T* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride, m, n, k;
  const T* values;              // [nnz, bk, bn]
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

// The blocks of scores that exist, `block` queries by as many keys. Those of head h in block row r
// are indptr[h (rows + 1) + r] .. indptr[h (rows + 1) + r + 1], h = 0 unless per_head.
struct BlockPattern {
  const std::int32_t* indptr;   // null: all blocks exist
  const std::int32_t* indices;  // which block of keys, ascending within a row
  const std::int32_t* partial;  // -1: a whole block; else its mask in masks
  const bool* masks;            // [block, block], true: may be attended
  std::int64_t block, rows;
  bool per_head;
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
  BlockPattern pattern;
  T* out;  // [batch, queries, heads, dim], contiguous
  int threads;
};

struct Kernels {
  const char* name;
  void (*block_sparse_linear)(const BlockSparseLinear<float>&);
  void (*attention)(const Attention<float>&);
  void (*attention_bf16)(const Attention<bf16>&);
};

}  // namespace secateurs::cpu
