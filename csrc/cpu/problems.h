// The problems that the kernels solve.
#pragma once

#include <cstdint>

#include "common/activation.h"

namespace secateurs::cpu {

// The upper half of a float.
struct bf16 {
  std::uint16_t bits;
};

// Two neighbouring inputs, the first in the lower half: products of bf16 read this unit. It may lie
// across two words where rows have an odd number of inputs.
struct Pair {
  bf16 first, second;
};

// What the problems of all linear kernels share: y = act(x W^T + bias) * multiplier + residual.
template <class T>
struct Linear {
  const T* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride, m, n, k;
  const T* bias;  // [n] or null
  Activation activation;
  const T* multiplier;  // [m, n], rows multiplier_stride apart, or null
  const T* residual;    // the same
  std::int64_t multiplier_stride, residual_stride;
  T* y;  // [m, n], contiguous
  int threads;
};

// W [n, k] stored as the tiles that are kept (BSR). Block row r holds outputs r*bn .. r*bn + bn, block
// column c inputs c*bk .. c*bk + bk; outputs from n on are padding and are not written, inputs from k
// on meet zeros.
template <class T>
struct BlockSparseLinear : Linear<T> {
  const T* values;              // [nnz, bk, bn]; bf16: in pairs of inputs, [nnz, bk / 2, bn, 2]
  const std::int32_t* indptr;   // [rows + 1]
  const std::int32_t* indices;  // [nnz], ascending in a row
  std::int64_t rows, bk, bn;
};

// Four codes of 8 bits, of neighbouring inputs: the unit in which products of codes read. Lies
// anywhere.
struct Quad {
  std::uint8_t codes[4];
};

// Every row of x in groups of as many inputs is rounded to codes of its own scale.
constexpr std::int64_t scaled_together = 64;

// The same for W [n, k] = scales[n] * codes[n, k], codes in -127 .. 127. Each group of a row of x is
// rounded to such codes too, products of codes are summed exactly within a group, and these sums,
// each times the scale of its group, in float in the order of the groups.
template <class T>
struct Int8Linear : Linear<T> {
  const std::uint8_t* values;  // [nnz, bk / 4, bn, 4], codes + 128
  const float* scales;         // [n]
  const std::int32_t* indptr;
  const std::int32_t* indices;
  // bk is 32, a multiple of 64, or, for blocks of all inputs, k filled up to a multiple of 32.
  std::int64_t rows, bk, bn;
};

// A weight in which `v` neighbouring outputs keep the same inputs.
template <class T>
struct PatternLinear : Linear<T> {
  // Group after group, [kept / s, v, s]: s inputs of an output side by side, kept rounded up. s is
  // 1 for float; for bf16 see Kernels.
  const T* values;
  const std::int32_t* columns;   // the inputs each group keeps, ascending, group after group
  const std::int32_t* indptr;    // [groups + 1], where those of a group begin; or null:
  std::int64_t groups, kept, v;  // every group keeps `kept`. n = groups * v
};

// The same in codes, as of Int8Linear, for W [n, k] in which `v` neighbouring outputs keep the same
// inputs. Of each group of outputs, and of each group of inputs with one scale in turn, the kept
// inputs lie four by four in words, the last of them filled up with codes of zero.
template <class T>
struct Int8VectorLinear : Linear<T> {
  const std::int8_t* values;   // [words, v, 4], codes
  const std::uint8_t* places;  // [words, 4], which inputs of their group
  const std::int32_t* indptr;  // [groups * ceil(k / 64) + 1], where the words of a pair begin
  const std::int32_t* starts;  // [groups * ceil(k / 64), v], -128 times the sum of the codes
  const float* scales;         // [n]
  std::int64_t groups, v;      // n = groups * v
};

// The same for up to 16 rows of x and a weight whose blocks of 4 x 4 or 1 x 4 (outputs x inputs) each
// follow one of up to 16 patterns.
template <class T>
struct LibraryLinear : Linear<T> {
  const T* values;            // [n / block_outputs, k / 4, ones], row by row of a pattern
  const std::uint8_t* codes;  // [n / block_outputs, k / 4], the pattern of each block
  const bool* library;        // [patterns, block_outputs, 4]
  std::int64_t patterns, block_outputs, ones;
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
  bool short_products;  // those of float may be rounded to bfloat16 before they are multiplied
  T* out;               // [batch, queries, heads, dim], contiguous
  int threads;
};

// y = norm(x + residual): LayerNorm, or RMSNorm where `rms`.
template <class T>
struct AddNorm {
  const T* x;  // [m, d], rows x_stride apart
  std::int64_t x_stride, m, d;
  const T* residual;  // the same, or null
  std::int64_t residual_stride;
  const T *weight, *bias;  // [d]; bias may be null
  float eps;
  bool rms;
  T* sum;  // [m, d], contiguous: x + residual; or null
  T* y;    // [m, d], contiguous
  int threads;
};

}  // namespace secateurs::cpu
