// softmax(scale q k^T) v over the keys that each query may see.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/launch.h"

namespace secateurs::cuda {

struct Attention {
  struct Strides {
    std::int64_t batch, head, row;  // in numbers; rows are contiguous, on 16-byte boundaries
  };
  // Which blocks of scores exist: those of block row r and head h are indptr[h][r] .. indptr[h][r+1].
  struct Pattern {
    const std::int32_t* indptr = nullptr;  // [heads or 1, rows + 1]; null: all of them
    const std::int32_t* indices = nullptr;
    const std::int32_t* partial =
        nullptr;                  // -1, or which of the masks says what is seen in a block
    const bool* masks = nullptr;  // [.., block, block]
    int block = 0, rows = 0;
    bool per_head = false;
  };

  const void *q, *k, *v;  // [batch, heads, queries, dim], [batch, kv_heads, keys, dim]
  Strides q_stride, k_stride, v_stride;
  int batch, heads, kv_heads, queries, keys, dim;
  const std::int32_t* kv_of;  // [heads], or null: neighbours share a key/value head
  const bool* key_mask;       // [batch, keys], true: may be seen; or null
  bool causal;                // query i sees keys up to i + keys - queries
  float scale;
  Pattern pattern;
  void* out;  // [batch, queries, heads, dim], contiguous; zeros where a query sees nothing
  Dtype dtype;
  float* partial = nullptr;  // as many as partial_sums() says

  std::string text() const;
};

// How a problem is cut among thread blocks.
struct AttentionCut {
  int queries;  // of a tile
  int heads;    // whose queries share a tile: all that read one key/value head, or one
  // 0: a thread block walks over all keys that its queries may see. Else over one of so many even
  // parts, and a second kernel joins the parts of a query in order: few queries against many keys
  // would leave the GPU idle.
  int parts;
};

// For queries that see about `seen` keys each.
AttentionCut cut(const Attention& p, std::int64_t seen, int multiprocessors);
std::int64_t partial_sums(const Attention& p, const AttentionCut& cut);  // floats

void attention(const Attention& p, const AttentionCut& cut, const Launch& where);

}  // namespace secateurs::cuda
