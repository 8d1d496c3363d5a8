#include "cpu/encoder_layer.h"

#include <algorithm>
#include <cmath>

#include "cpu/scratch.h"

namespace secateurs::cpu {

namespace {

// Sequences go through the layer together as long as every thread has this many tokens of them, and
// all threads at most so many: enough for the products to run at their rate, few enough for what lies
// between them to stay in the threads' own caches and for the memory kept between calls to be small.
constexpr std::int64_t tokens_of_a_thread = 128, tokens_together = 1024;

void run(const Kernels& k, const BlockSparseLinear<float>& p) { k.block_sparse_linear(p); }
void run(const Kernels& k, const BlockSparseLinear<bf16>& p) { k.block_sparse_linear_bf16(p); }
void run(const Kernels& k, const Int8Linear<float>& p) { k.int8_linear(p); }
void run(const Kernels& k, const Int8Linear<bf16>& p) { k.int8_linear_bf16(p); }
void run(const Kernels& k, const Attention<float>& p) { k.attention(p); }
void run(const Kernels& k, const Attention<bf16>& p) { k.attention_bf16(p); }
void run(const Kernels& k, const AddNorm<float>& p) { k.add_norm(p); }
void run(const Kernels& k, const AddNorm<bf16>& p) { k.add_norm_bf16(p); }

template <class T>
struct Rows {
  const T* data;
  std::int64_t stride;
};

// A layer over the sequences of one chunk.
template <class T>
class Chunk {
 public:
  Chunk(const Kernels& kernels, const EncoderLayers<T>& call, const EncoderLayer<T>& layer,
        std::int64_t first, std::int64_t batch, T* memory)
      : kernels_(kernels),
        l_(layer),
        batch_(batch),
        tokens_(call.tokens),
        m_(batch * call.tokens),
        threads_(call.threads),
        key_mask_(call.key_mask ? call.key_mask + first * call.tokens : nullptr),
        y_(call.y + first * call.tokens * layer.d) {
    wide_ = memory;
    context_ = wide_ + m_ * wide(layer);
    between_ = context_ + m_ * layer.heads * layer.dim;
    state_ = between_ + m_ * layer.d;
  }

  // Elements of memory for each token.
  static std::int64_t per_token(const EncoderLayer<T>& l) {
    return wide(l) + l.heads * l.dim + 2 * l.d;
  }

  // x may lie where y is written: that is the last step, which does not read x.
  Rows<T> run_on(Rows<T> x) {
    if (l_.qkv.n) x = attend(x, between_);
    x = norm(x, l_.attention_norm, state_);
    if (l_.up.n) x = feed_forward(x, between_);
    return norm(x, l_.ffn_norm, y_);
  }

 private:
  // The intermediate results of attention are not needed any more when the FFN begins: both use the
  // same memory.
  static std::int64_t wide(const EncoderLayer<T>& l) { return std::max(l.qkv.n, l.up.n); }

  Rows<T> attend(Rows<T> x, T* y) {
    const std::int64_t d = l_.dim, width = l_.qkv.n, q = l_.heads * d, kv = l_.kv_heads * d;
    linear(x, l_.qkv, Activation::none, {nullptr, 0}, wide_);
    const Strides strides{tokens_ * width, d, width};
    Attention<T> problem{};
    problem.q = wide_;
    problem.k = wide_ + q;
    problem.v = wide_ + q + kv;
    problem.q_stride = problem.k_stride = problem.v_stride = strides;
    problem.batch = batch_;
    problem.heads = l_.heads;
    problem.queries = problem.keys = tokens_;
    problem.dim = d;
    problem.kv_of = l_.kv_of;
    problem.key_mask = key_mask_;
    problem.scale = 1 / std::sqrt(static_cast<float>(d));
    problem.short_products = l_.qkv.scales != nullptr;  // which rounds more
    problem.out = context_;
    problem.threads = threads_;
    run(kernels_, problem);
    return linear({context_, q}, l_.output, Activation::none, x, y);
  }

  Rows<T> feed_forward(Rows<T> x, T* y) {
    const Rows<T> h = linear(x, l_.up, l_.activation, {nullptr, 0}, wide_);
    return linear(h, l_.down, Activation::none, x, y);
  }

  Rows<T> linear(Rows<T> x, const PackedLinear<T>& w, Activation activation, Rows<T> residual,
                 T* y) {
    if (w.scales) {
      Int8Linear<T> problem{};
      problem.scales = w.scales;
      return linear(problem, x, w, activation, residual, y);
    }
    return linear(BlockSparseLinear<T>{}, x, w, activation, residual, y);
  }

  // The same by a problem that knows what no other kind of linear has.
  template <class Problem>
  Rows<T> linear(Problem problem, Rows<T> x, const PackedLinear<T>& w, Activation activation,
                 Rows<T> residual, T* y) {
    problem.x = x.data;
    problem.x_stride = x.stride;
    problem.m = m_;
    problem.n = w.n;
    problem.k = w.k;
    problem.values = static_cast<decltype(problem.values)>(w.values);
    problem.indptr = w.indptr;
    problem.indices = w.indices;
    problem.rows = w.rows;
    problem.bk = w.bk;
    problem.bn = w.bn;
    problem.bias = w.bias;
    problem.activation = activation;
    problem.residual = residual.data;
    problem.residual_stride = residual.stride;
    problem.y = y;
    problem.threads = threads_;
    run(kernels_, problem);
    return {y, w.n};
  }

  Rows<T> norm(Rows<T> x, const Norm<T>& n, T* y) {
    AddNorm<T> problem{};
    problem.x = x.data;
    problem.x_stride = x.stride;
    problem.m = m_;
    problem.d = l_.d;
    problem.weight = n.weight;
    problem.bias = n.bias;
    problem.eps = n.eps;
    problem.y = y;
    problem.threads = threads_;
    run(kernels_, problem);
    return {y, l_.d};
  }

  const Kernels& kernels_;
  const EncoderLayer<T>& l_;
  std::int64_t batch_, tokens_, m_;
  int threads_;
  const bool* key_mask_;
  T *y_, *wide_, *context_, *between_, *state_;
};

// Every chunk goes through all layers before the next one begins.
template <class T>
void chunks(const Kernels& kernels, const EncoderLayers<T>& call) {
  const std::int64_t batch = call.batch, tokens = call.tokens;
  if (!batch || !tokens || call.layers.empty()) return;
  const std::int64_t rows = std::min(tokens_of_a_thread * call.threads, tokens_together);
  const std::int64_t most = std::clamp<std::int64_t>(rows / tokens, 1, batch);
  const std::int64_t parts = (batch + most - 1) / most, together = (batch + parts - 1) / parts;
  std::size_t elements = 0;
  for (const EncoderLayer<T>& layer : call.layers)
    elements = std::max<std::size_t>(elements, together * tokens * Chunk<T>::per_token(layer));
  auto* memory =
      reinterpret_cast<T*>(scratch(layer_slot, (elements * sizeof(T) + 3) / sizeof(float)));
  for (std::int64_t first = 0; first < batch; first += together) {
    Rows<T> x{call.x + first * tokens * call.x_stride, call.x_stride};
    for (const EncoderLayer<T>& layer : call.layers)
      x = Chunk<T>(kernels, call, layer, first, std::min(together, batch - first), memory)
              .run_on(x);
  }
}

}  // namespace

void encoder_layers(const Kernels& kernels, const EncoderLayers<float>& call) {
  chunks(kernels, call);
}
void encoder_layers(const Kernels& kernels, const EncoderLayers<bf16>& call) {
  chunks(kernels, call);
}

}  // namespace secateurs::cpu
