// The stack of keys that the queries of a tile may see, and what of it each of them does: all keys in
// order, or the stored blocks of a block row one behind the other.
#pragma once

#include "cuda/attention/attention.h"
#include "cuda/ptx.cuh"

namespace secateurs::cuda {

// The keys of a step. They come in runs, of a block of the pattern, or of 64 keys where blocks are
// larger or there are none.
template <int KEYS>
struct Places {
  int key[KEYS];                  // -1: hidden from all queries
  std::uint32_t seen[KEYS / 32];  // the same in bits: which are not
  int first[KEYS / 16];           // of each run, where it stands in the sequence
  int mask[KEYS / 16];            // and where its column starts in the masks of blocks, -1: no mask
};

template <class C>
struct KeyStack {
  const Attention& p;
  const bool* key_mask;  // of this sequence
  int begin, length;     // first block of the pattern, keys in the stack
  int log_block, log_run;

  __device__ explicit KeyStack(const Attention& p, int sequence)
      : p(p),
        key_mask(p.key_mask ? p.key_mask + std::int64_t{sequence} * p.keys : nullptr),
        begin(0),
        length(p.keys),
        log_block(31 - ptx::leading_zeros(p.pattern.block | 1)),
        log_run(p.pattern.indptr ? min(log_block, 6) : 6) {}

  __device__ void look_up(int step, Places<C::KEYS>& places) const {
    for (int i = threadIdx.x; i < C::KEYS; i += C::THREADS) {
      const int at = step * C::KEYS + i;
      int key = at, mask = -1;
      bool seen = at < length;
      if (seen && p.pattern.indptr) {
        const int block = begin + (at >> log_block), inside = at & (p.pattern.block - 1);
        key = (p.pattern.indices[block] << log_block) + inside;
        const int which = p.pattern.partial[block];
        if (which >= 0) mask = (which << 2 * log_block) + inside;
      }
      seen = seen && key < p.keys && !(key_mask && !key_mask[key]);
      places.key[i] = seen ? key : -1;
      const std::uint32_t bits = ptx::ballot(seen);
      if (i % 32 == 0) places.seen[i / 32] = bits;
      if (const int run = i >> log_run; i == run << log_run) {
        places.first[run] = key;
        places.mask[run] = mask;
      }
    }
  }

  // Whether a query that sees keys up to `last` by causality sees all of a step.
  __device__ bool all_seen(const Places<C::KEYS>& places, int last) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < C::KEYS / 32; ++i) all = all && places.seen[i] == ~0u;
    if (p.causal || p.pattern.indptr)
      for (int i = 0; i < C::KEYS >> log_run; ++i)
        all = all && places.mask[i] < 0 &&
              (!p.causal || places.first[i] + (1 << log_run) - 1 <= last);
    return all;
  }
};

// What one query of a lane sees of a step: of the columns that the lane holds.
template <class C>
class Sight {
 public:
  // The query at `row`, which sees keys up to `last` by causality.
  __device__ Sight(const KeyStack<C>& stack, const Places<C::KEYS>& places, int row, int last) {
    const Attention& p = stack.p;
    const int log_run = stack.log_run, run = 1 << log_run, left = threadIdx.x % 4 * 2;
#pragma unroll
    for (int w = 0; w < C::KEYS / 32; ++w) words_[w] = places.seen[w];
    if (p.causal || p.pattern.indptr)
      for (int i = 0; i < C::KEYS >> log_run; ++i) {
        const int count = p.causal ? min(max(last - places.first[i] + 1, 0), run) : run;
        hide(i * run + count, (i + 1) * run);
      }
#pragma unroll
    for (int w = 0; w < C::KEYS / 32; ++w) words_[w] >>= left;
    if (!p.pattern.indptr) return;
#pragma unroll
    for (int n = 0; n < C::KEYS / 8; ++n) {
      const int column = n * 8 + left, mask = places.mask[column >> log_run];
      if (mask < 0) continue;
      const int in_block = row & (p.pattern.block - 1);
      const int at = mask + (in_block << stack.log_block) + (column & (run - 1));
      const auto pair = *reinterpret_cast<const std::uint16_t*>(p.pattern.masks + at);
      const std::uint32_t hidden = (pair & 1 ? 0 : 1) | (pair >> 8 ? 0 : 2);
      words_[n / 4] &= ~(hidden << n % 4 * 8);
    }
  }

  // Column n * 8 + 2 (lane % 4) + j.
  __device__ bool sees(int n, int j) const { return words_[n / 4] >> (n % 4 * 8 + j) & 1; }

 private:
  std::uint32_t words_[C::KEYS / 32];

  // Columns begin .. end.
  __device__ void hide(int begin, int end) {
#pragma unroll
    for (int w = 0; w < C::KEYS / 32; ++w)
      words_[w] &= below(begin - w * 32) | ~below(end - w * 32);
  }

  // A bit for each column before `count`.
  __device__ static std::uint32_t below(int count) {
    return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
  }
};

// Starts the copies of the rows that `keys` names, zeros for those that are hidden.
template <class C>
__device__ inline void load_rows(uint4* tile, const typename C::T* from, std::int64_t stride,
                                 const int (&keys)[C::KEYS]) {
#pragma unroll 4
  for (int t = threadIdx.x; t < C::KEYS * C::CHUNKS; t += C::THREADS) {
    const int row = t / C::CHUNKS, chunk = t % C::CHUNKS, key = keys[row];
    ptx::copy_async16(tile + row * C::ROW + chunk, from + key * stride + chunk * 8, key >= 0);
  }
}

}  // namespace secateurs::cuda
