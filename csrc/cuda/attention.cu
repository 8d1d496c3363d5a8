// Attention with an online softmax, on mma.sync.
//
// A thread block owns WARPS * 16 queries of one head, a warp 16 of them, and walks over the stack of
// keys that they may see, KEYS at a time: all keys in order, or the stored blocks of its block row one
// behind the other. Where in the sequence the keys of a step stand, and what cuts through their
// blocks, is looked up two steps ahead; keys and values come one step ahead. Hidden keys are never
// read: what stands there, NaN included, does not matter.
#include "cuda/attention.h"

#include "cuda/number.cuh"

namespace secateurs::cuda {

std::string Attention::text() const {
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  return "attention of " + number(batch) + "x" + number(heads) + " (" + number(kv_heads) +
         ") heads of " + number(dim) + ", " + number(queries) + " queries, " + number(keys) +
         " keys, blocks of " + number(pattern.block);
}

namespace {

template <class T_, int D_, int WARPS_>
struct AttentionTile {
  using T = T_;
  static constexpr int D = D_, WARPS = WARPS_, QUERIES = WARPS * 16, KEYS = 64;
  static constexpr int THREADS = WARPS * 32;
  static constexpr int CHUNKS = D / 8;      // of 16 bytes in a row
  static constexpr int ROW = CHUNKS | 1;    // odd: eight rows' chunks fall into different banks
  static constexpr int STAGE = KEYS * ROW;  // chunks of a stage, of keys as of values
  static constexpr int LOOK_UPS = 3;        // steps whose places are kept
  static constexpr int BYTES = (QUERIES * ROW + 4 * STAGE) * 16 + LOOK_UPS * KEYS * 8;
  static_assert(D % 16 == 0 && BYTES <= 99 * 1024);
};

// Where the keys of a step stand, -1: hidden; and where their column starts in the masks of blocks,
// -1: nothing cuts through their block.
template <class C>
struct Places {
  int key[C::KEYS], mask[C::KEYS];
};

template <class C>
struct KeyStack {
  const Attention& p;
  const bool* key_mask;  // of this sequence
  int begin, length;     // first block of the pattern, keys in the stack

  __device__ void look_up(int step, Places<C>& places) const {
    for (int i = threadIdx.x; i < C::KEYS; i += C::THREADS) {
      const int at = step * C::KEYS + i;
      int key = -1, mask = -1;
      if (at < length) {
        key = at;
        if (p.pattern.indptr) {
          const int block = begin + at / p.pattern.block, inside = at % p.pattern.block;
          key = p.pattern.indices[block] * p.pattern.block + inside;
          const int which = p.pattern.partial[block];
          if (which >= 0) mask = which * p.pattern.block * p.pattern.block + inside;
        }
        if (key >= p.keys || (key_mask && !key_mask[key])) key = -1;
      }
      places.key[i] = key;
      places.mask[i] = mask;
    }
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

template <class C>
__global__ void __launch_bounds__(C::THREADS, 2) attention_forward(Attention p) {
  using T = typename C::T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int h = blockIdx.y, b = blockIdx.z;
  // Under causality the last queries see most: they start first.
  const int first = (p.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * C::QUERIES;
  const int offset = p.keys - p.queries;
  const int group = p.kv_of ? p.kv_of[h] : h / (p.heads / p.kv_heads);
  const T* k = static_cast<const T*>(p.k) + b * p.k_stride.batch + group * p.k_stride.head;
  const T* v = static_cast<const T*>(p.v) + b * p.v_stride.batch + group * p.v_stride.head;
  const T* q = static_cast<const T*>(p.q) + b * p.q_stride.batch + h * p.q_stride.head;

  auto* q_tile = reinterpret_cast<uint4*>(ptx::dyn_smem<16>());
  uint4* stages = q_tile + C::QUERIES * C::ROW;
  auto* places = reinterpret_cast<Places<C>*>(stages + 4 * C::STAGE);

  KeyStack<C> stack{p, p.key_mask ? p.key_mask + std::int64_t{b} * p.keys : nullptr, 0, p.keys};
  if (p.pattern.indptr) {
    const std::int32_t* row = p.pattern.indptr + first / p.pattern.block +
                              (p.pattern.per_head ? h * (p.pattern.rows + 1) : 0);
    stack.begin = row[0];
    stack.length = (row[1] - row[0]) * p.pattern.block;
  } else if (p.causal) {
    stack.length = max(0, min(p.keys, first + C::QUERIES + offset));
  }
  const int steps = (stack.length + C::KEYS - 1) / C::KEYS;

  const auto load = [&](int step) {
    uint4* tile = stages + step % 2 * 2 * C::STAGE;
    const auto& keys = places[step % C::LOOK_UPS].key;
    load_rows<C>(tile, k, p.k_stride.row, keys);
    load_rows<C>(tile + C::STAGE, v, p.v_stride.row, keys);
  };
  for (int t = threadIdx.x; t < C::QUERIES * C::CHUNKS; t += C::THREADS) {
    const int row = t / C::CHUNKS, chunk = t % C::CHUNKS;
    ptx::copy_async16(q_tile + row * C::ROW + chunk, q + (first + row) * p.q_stride.row + chunk * 8,
                      first + row < p.queries);
  }
  stack.look_up(0, places[0]);
  stack.look_up(1, places[1]);
  ptx::sync_block();
  load(0);
  ptx::commit_copies();

  std::uint32_t query[C::D / 16][4];
  float out[C::D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const float scale = p.scale * 1.4426950408889634f;  // scores are kept in powers of two
  const int rows[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8};

  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<0>();
    ptx::sync_block();
    if (step + 1 < steps) load(step + 1);
    ptx::commit_copies();
    stack.look_up(step + 2, places[(step + 2) % C::LOOK_UPS]);
    if (step == 0) {
#pragma unroll
      for (int d = 0; d < C::D / 16; ++d)
        ptx::load_matrices(query[d], q_tile + (warp * 16 + lane % 16) * C::ROW + d * 2 + lane / 16);
    }

    const uint4* keys = stages + step % 2 * 2 * C::STAGE;
    float score[C::KEYS / 8][4] = {};
#pragma unroll
    for (int d = 0; d < C::D / 16; ++d)
#pragma unroll
      for (int n = 0; n < C::KEYS / 16; ++n) {
        std::uint32_t pair[4];
        ptx::load_matrices(
            pair, keys + (n * 16 + lane / 16 * 8 + lane % 8) * C::ROW + d * 2 + lane / 8 % 2);
        ptx::multiply<T>(score[n * 2], query[d], pair[0], pair[1]);
        ptx::multiply<T>(score[n * 2 + 1], query[d], pair[2], pair[3]);
      }

    const Places<C>& place = places[step % C::LOOK_UPS];
    float highest[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < C::KEYS / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + lane % 4 * 2 + i % 2, row = rows[i / 2];
        const int key = place.key[column], mask = place.mask[column];
        bool seen = key >= 0 && (!p.causal || key <= row + offset);
        if (mask >= 0)
          seen = seen && p.pattern.masks[mask + row % p.pattern.block * p.pattern.block];
        score[n][i] = seen ? score[n][i] * scale : -INFINITY;
        highest[i / 2] = fmaxf(highest[i / 2], score[n][i]);
      }
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      highest[i] = fmaxf(highest[i], ptx::shuffle_xor(highest[i], 1));
      highest[i] = fmaxf(highest[i], ptx::shuffle_xor(highest[i], 2));
      base[i] = highest[i] == -INFINITY ? 0.f : highest[i];  // nothing seen yet
      const float shrink = ptx::exp2(top[i] - base[i]);
      top[i] = highest[i];
      total[i] *= shrink;
#pragma unroll
      for (int d = 0; d < C::D / 8; ++d) {
        out[d][i * 2] *= shrink;
        out[d][i * 2 + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < C::KEYS / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] = ptx::exp2(score[n][i] - base[i / 2]);
        total[i / 2] += score[n][i];
      }

    const uint4* values = keys + C::STAGE;
#pragma unroll
    for (int n = 0; n < C::KEYS / 16; ++n) {
      const auto &left = score[n * 2], &right = score[n * 2 + 1];
      const std::uint32_t weight[4] = {packed<T>(left[0], left[1]), packed<T>(left[2], left[3]),
                                       packed<T>(right[0], right[1]),
                                       packed<T>(right[2], right[3])};
#pragma unroll
      for (int d = 0; d < C::D / 16; ++d) {
        std::uint32_t pair[4];
        ptx::load_matrices_transposed(pair,
                                      values + (n * 16 + lane % 16) * C::ROW + d * 2 + lane / 16);
        ptx::multiply<T>(out[d * 2], weight, pair[0], pair[1]);
        ptx::multiply<T>(out[d * 2 + 1], weight, pair[2], pair[3]);
      }
    }
  }
  ptx::wait_copies<0>();
  ptx::sync_block();

  // Through the warp's own rows of shared memory, to be stored 16 bytes at a time.
  auto* words = reinterpret_cast<std::uint32_t*>(q_tile + warp * 16 * C::ROW);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] += ptx::shuffle_xor(total[i], 1);
    total[i] += ptx::shuffle_xor(total[i], 2);
    const float inverse = total[i] == 0 ? 0.f : 1 / total[i];
#pragma unroll
    for (int d = 0; d < C::D / 8; ++d)
      words[((lane / 4 + i * 8) * C::ROW + d) * 4 + lane % 4] =
          packed<T>(out[d][i * 2] * inverse, out[d][i * 2 + 1] * inverse);
  }
  ptx::sync_warp();
  for (int t = lane; t < 16 * C::CHUNKS; t += 32) {
    const int row = t / C::CHUNKS, chunk = t % C::CHUNKS, at = first + warp * 16 + row;
    if (at < p.queries)
      reinterpret_cast<uint4*>(
          p.out)[((std::int64_t{b} * p.queries + at) * p.heads + h) * C::CHUNKS + chunk] =
          q_tile[(warp * 16 + row) * C::ROW + chunk];
  }
}

template <class C>
void of_tile(const Attention& p, const Launch& where) {
  const dim3 grid((p.queries + C::QUERIES - 1) / C::QUERIES, p.heads, p.batch);
  launch(attention_forward<C>, grid, C::THREADS, C::BYTES, where, p, [&] { return p.text(); });
}

template <class T, int D>
void of_dim(const Attention& p, const Launch& where) {
  // Blocks of 16 and 32 leave no more than that many queries a common stack.
  const bool small = p.queries <= 16 || (p.pattern.indptr && p.pattern.block < 64);
  small ? of_tile<AttentionTile<T, D, 1>>(p, where) : of_tile<AttentionTile<T, D, 4>>(p, where);
}

template <class T>
void of_type(const Attention& p, const Launch& where) {
  switch (p.dim) {
    case 32:
      return of_dim<T, 32>(p, where);
    case 64:
      return of_dim<T, 64>(p, where);
    case 80:
      return of_dim<T, 80>(p, where);
    case 96:
      return of_dim<T, 96>(p, where);
    case 128:
      return of_dim<T, 128>(p, where);
  }
  throw std::invalid_argument("expected heads of 32, 64, 80, 96 or 128, got " +
                              std::to_string(p.dim));
}

}  // namespace

void attention(const Attention& p, const Launch& where) {
  if (!p.batch || !p.heads || !p.queries) return;
  p.dtype == DType::float16 ? of_type<ptx::Half>(p, where) : of_type<ptx::BFloat>(p, where);
}

}  // namespace secateurs::cuda
