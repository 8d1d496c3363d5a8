// Attention with an online softmax, on mma.sync.
//
// A thread block owns WARPS * 16 queries of one head, a warp 16 of them, and walks over the stack of
// keys that they may see, KEYS at a time: all keys in order, or the stored blocks of its block row one
// behind the other. Where in the sequence the keys of a step stand, and what cuts through their
// blocks, is looked up two steps ahead; keys and values come one step ahead. Hidden keys are never
// read: what stands there, NaN included, does not matter.
//
// Heads that read the same keys and values share a tile where their queries fit into one. Where the
// stacks are cut into parts, a thread block leaves for each of its queries the sums of
// values, the highest score and the sum of weights, and a second kernel joins them.
#include "cuda/attention/attention.h"

#include <algorithm>

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
  static constexpr int PIECE = QUERIES * (D + 4);  // floats of a part: sums, highest, weight
  static constexpr int BYTES = (QUERIES * ROW + 4 * STAGE) * 16 + LOOK_UPS * KEYS * 8;
  static_assert(D % 16 == 0 && BYTES <= 99 * 1024);
};

struct AttentionParameters {
  Attention p;
  AttentionCut cut;
  int tiles;  // of a head
};

// Whose query a row of a tile is; `head` counts from the first of the tile.
struct Row {
  int head, at;
  bool live;
};

__device__ inline Row row_of(const AttentionParameters& s, int first, int row) {
  if (s.cut.heads == 1) return {0, first + row, first + row < s.p.queries};
  return {row / s.p.queries, row % s.p.queries, row < s.cut.heads * s.p.queries};
}

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
__global__ void __launch_bounds__(C::THREADS, 2) attention_forward(AttentionParameters s) {
  using T = typename C::T;
  const Attention& p = s.p;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int h = blockIdx.y * s.cut.heads, b = blockIdx.z;
  const int parts = max(1, s.cut.parts), part = blockIdx.x % parts, in_order = blockIdx.x / parts;
  // Under causality the last queries see most: they start first.
  const int tile = p.causal ? s.tiles - 1 - in_order : in_order;
  const int first = tile * C::QUERIES;
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
  const std::int64_t steps = (stack.length + C::KEYS - 1) / C::KEYS;
  const int begin = static_cast<int>(steps * part / parts),
            end = static_cast<int>(steps * (part + 1) / parts);

  const auto load = [&](int step) {
    uint4* tile = stages + step % 2 * 2 * C::STAGE;
    const auto& keys = places[step % C::LOOK_UPS].key;
    load_rows<C>(tile, k, p.k_stride.row, keys);
    load_rows<C>(tile + C::STAGE, v, p.v_stride.row, keys);
  };
  for (int t = threadIdx.x; t < C::QUERIES * C::CHUNKS; t += C::THREADS) {
    const int row = t / C::CHUNKS, chunk = t % C::CHUNKS;
    const auto [head, at, live] = row_of(s, first, row);
    ptx::copy_async16(q_tile + row * C::ROW + chunk,
                      q + head * p.q_stride.head + at * p.q_stride.row + chunk * 8, live);
  }
  stack.look_up(begin, places[begin % C::LOOK_UPS]);
  stack.look_up(begin + 1, places[(begin + 1) % C::LOOK_UPS]);
  ptx::sync_block();
  load(begin);
  ptx::commit_copies();

  std::uint32_t query[C::D / 16][4];
  float out[C::D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const float scale = p.scale * 1.4426950408889634f;  // scores are kept in powers of two
  const int rows[2] = {row_of(s, first, warp * 16 + lane / 4).at,
                       row_of(s, first, warp * 16 + lane / 4 + 8).at};

  for (int step = begin; step < end; ++step) {
    ptx::wait_copies<0>();
    ptx::sync_block();
    if (step + 1 < end) load(step + 1);
    ptx::commit_copies();
    stack.look_up(step + 2, places[(step + 2) % C::LOOK_UPS]);
    if (step == begin) {
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
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    total[i] += ptx::shuffle_xor(total[i], 1);
    total[i] += ptx::shuffle_xor(total[i], 2);
  }

  if (s.cut.parts) {
    const std::int64_t tile_of_all = (std::int64_t{b} * gridDim.y + blockIdx.y) * s.tiles + tile;
    float* piece = p.partial + (tile_of_all * parts + part) * C::PIECE;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* row = piece + (warp * 16 + lane / 4 + i * 8) * (C::D + 4);
#pragma unroll
      for (int d = 0; d < C::D / 8; ++d)
        reinterpret_cast<float2*>(row)[d * 4 + lane % 4] = {out[d][i * 2], out[d][i * 2 + 1]};
      if (lane % 4 == 0) reinterpret_cast<float2*>(row)[C::D / 2] = {top[i], total[i]};
    }
    return;
  }
  // Through the warp's own rows of shared memory, to be stored 16 bytes at a time.
  auto* words = reinterpret_cast<std::uint32_t*>(q_tile + warp * 16 * C::ROW);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float inverse = total[i] == 0 ? 0.f : 1 / total[i];
#pragma unroll
    for (int d = 0; d < C::D / 8; ++d)
      words[((lane / 4 + i * 8) * C::ROW + d) * 4 + lane % 4] =
          packed<T>(out[d][i * 2] * inverse, out[d][i * 2 + 1] * inverse);
  }
  ptx::sync_warp();
  for (int t = lane; t < 16 * C::CHUNKS; t += 32) {
    const int row = warp * 16 + t / C::CHUNKS, chunk = t % C::CHUNKS;
    const auto [head, at, live] = row_of(s, first, row);
    const std::int64_t place = (std::int64_t{b} * p.queries + at) * p.heads + h + head;
    if (live)
      reinterpret_cast<uint4*>(p.out)[place * C::CHUNKS + chunk] = q_tile[row * C::ROW + chunk];
  }
}

// Joins the parts of a query: a thread does eight numbers of it.
template <class T>
__global__ void __launch_bounds__(128) join_parts(AttentionParameters s) {
  const Attention& p = s.p;
  const int chunks = p.dim / 8, row_floats = p.dim + 4;
  const std::int64_t t = blockIdx.x * std::int64_t{128} + threadIdx.x;
  const std::int64_t query = t / chunks;  // as the output has them
  if (query >= std::int64_t{p.batch} * p.queries * p.heads) return;
  const int chunk = static_cast<int>(t % chunks);
  const int h = static_cast<int>(query % p.heads);
  const int at = static_cast<int>(query / p.heads % p.queries);
  const std::int64_t heads_of_all = query / p.heads / p.queries * (p.heads / s.cut.heads);
  const int row = s.cut.heads == 1 ? at % s.cut.queries : h % s.cut.heads * p.queries + at;
  const int tile = s.cut.heads == 1 ? at / s.cut.queries : 0;
  const std::int64_t tile_of_all = (heads_of_all + h / s.cut.heads) * s.tiles + tile;
  const std::int64_t piece = std::int64_t{s.cut.queries} * row_floats;
  const float* sums = p.partial + tile_of_all * s.cut.parts * piece + row * row_floats;
  const float* told = sums + p.dim;  // the highest score, the sum of weights
  float highest = -INFINITY;
  for (int part = 0; part < s.cut.parts; ++part) highest = fmaxf(highest, told[part * piece]);
  float sum[8] = {}, total = 0;
  for (int part = 0; part < s.cut.parts; ++part) {
    const float top = told[part * piece];
    if (top == -INFINITY) continue;  // nothing seen there
    const float weight = ptx::exp2(top - highest);
    float of_part[8];
    load8(of_part, sums + part * piece + chunk * 8, 8, true);
    total += weight * told[part * piece + 1];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += weight * of_part[i];
  }
  const float inverse = total == 0 ? 0.f : 1 / total;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] *= inverse;
  store8(static_cast<T*>(p.out) + query * p.dim + chunk * 8, sum, 8, true);
}

int tiles(const Attention& p, const AttentionCut& cut) {
  return cut.heads > 1 ? 1 : (p.queries + cut.queries - 1) / cut.queries;
}

template <class C>
void of_tile(const AttentionParameters& s, const Launch& where) {
  const auto what = [&] {
    return s.p.text() + " in tiles of " + std::to_string(C::QUERIES) + ", " +
           std::to_string(s.cut.heads) + " heads in one, " + std::to_string(s.cut.parts) + " parts";
  };
  const dim3 grid(s.tiles * std::max(1, s.cut.parts), s.p.heads / s.cut.heads, s.p.batch);
  launch(attention_forward<C>, grid, C::THREADS, C::BYTES, where, s, what);
  if (!s.cut.parts) return;
  const std::int64_t threads = std::int64_t{s.p.batch} * s.p.queries * s.p.heads * (s.p.dim / 8);
  launch(join_parts<typename C::T>, dim3(static_cast<unsigned>((threads + 127) / 128)), 128, 0,
         where, s, what);
}

template <class T, int D>
void of_dim(const AttentionParameters& s, const Launch& where) {
  s.cut.queries == 16 ? of_tile<AttentionTile<T, D, 1>>(s, where)
                      : of_tile<AttentionTile<T, D, 4>>(s, where);
}

template <class T>
void of_type(const AttentionParameters& s, const Launch& where) {
  switch (s.p.dim) {
    case 32:
      return of_dim<T, 32>(s, where);
    case 64:
      return of_dim<T, 64>(s, where);
    case 80:
      return of_dim<T, 80>(s, where);
    case 96:
      return of_dim<T, 96>(s, where);
    case 128:
      return of_dim<T, 128>(s, where);
  }
  throw std::invalid_argument("expected heads of 32, 64, 80, 96 or 128, got " +
                              std::to_string(s.p.dim));
}

}  // namespace

AttentionCut cut(const Attention& p, std::int64_t seen, int multiprocessors) {
  // Blocks of 16 and 32 leave no more than that many queries a common stack.
  const bool few = p.queries <= 16 || (p.pattern.block && p.pattern.block < 64);
  AttentionCut cut{few ? 16 : 64, 1, 0};
  const int group = p.heads / std::max(1, p.kv_heads);
  if (!p.kv_of && !p.pattern.per_head && group * p.queries <= 16) cut.heads = std::max(1, group);
  constexpr int SHORTEST = 256;  // keys that are worth a thread block
  const std::int64_t blocks =
      std::int64_t{tiles(p, cut)} * std::max(1, p.heads / cut.heads * p.batch);
  const std::int64_t at_once = (few ? 3 : 2) * std::int64_t{multiprocessors};
  const std::int64_t parts = std::min(at_once / std::max<std::int64_t>(1, blocks), seen / SHORTEST);
  if (parts > 1) cut.parts = static_cast<int>(parts);
  return cut;
}

std::int64_t partial_sums(const Attention& p, const AttentionCut& cut) {
  return std::int64_t{p.batch} * (p.heads / cut.heads) * tiles(p, cut) * cut.parts * cut.queries *
         (p.dim + 4);
}

void attention(const Attention& p, const AttentionCut& cut, const Launch& where) {
  if (!p.batch || !p.heads || !p.queries) return;
  const AttentionParameters s{p, cut, tiles(p, cut)};
  p.dtype == Dtype::float16 ? of_type<ptx::Half>(s, where) : of_type<ptx::BFloat>(s, where);
}

}  // namespace secateurs::cuda
