// Layers of a Transformer encoder as one call: a chain of the kernels of an instruction set.
#pragma once

#include <vector>

#include "cpu/kernel_table.h"

namespace secateurs::cpu {

// x W^T + bias, W [n, k] as in BlockSparseLinear, or, where there are scales, as in Int8Linear.
// Without outputs (n = 0): no such product.
template <class T>
struct PackedLinear {
  const void* values;
  const float* scales;
  const std::int32_t *indptr, *indices;
  std::int64_t n, k, rows, bk, bn;
  const T* bias;
};

template <class T>
struct Norm {
  const T *weight, *bias;  // [d]; bias may be null
  float eps;
};

// a = norm(x + output(attention(qkv(x)))), y = norm(a + down(act(up(a)))). A layer without qkv adds
// no attention, one without up nothing to a.
template <class T>
struct EncoderLayer {
  std::int64_t d;
  PackedLinear<T> qkv, output, up, down;  // n of qkv: (heads + 2 kv_heads) dim
  Norm<T> attention_norm, ffn_norm;
  std::int64_t heads, kv_heads, dim;
  const std::int32_t* kv_of;  // [heads]
  Activation activation;
};

// Layers of the same d, each of which reads what the one before it computed.
template <class T>
struct EncoderLayers {
  std::vector<EncoderLayer<T>> layers;
  const T* x;  // [batch, tokens, d], rows x_stride apart
  std::int64_t x_stride, batch, tokens;
  const bool* key_mask;  // [batch, tokens], true: may be attended; or null
  T* y;                  // [batch, tokens, d], contiguous
  int threads;
};

void encoder_layers(const Kernels& kernels, const EncoderLayers<float>& call);
void encoder_layers(const Kernels& kernels, const EncoderLayers<bf16>& call);

}  // namespace secateurs::cpu
