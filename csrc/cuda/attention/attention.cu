// Attention with an online softmax, on mma.sync.
//
// A thread block owns the queries of a tile of one head, a warp 16 or 32 of them (the more, the less
// often keys and values are read from shared memory), and walks over the stack of keys that they may
// see (key_stack.cuh), KEYS at a time. Where in the sequence the keys of a step stand, and what cuts
// through their blocks, is looked up two steps ahead; keys and values come one step ahead. Hidden keys
// are never read: what stands there, NaN included, does not matter. Steps that nothing hides of,
// which are most, do not ask what is seen.
//
// Heads that read the same keys and values share a tile where their queries fit into one. Where the
// stacks are cut into parts, a thread block leaves for each of its queries the sums of
// values, the highest score and the sum of weights, and a second kernel joins them.
#include "cuda/attention/attention.h"

#include <algorithm>

#include "cuda/attention/key_stack.cuh"
#include "cuda/number.cuh"

namespace secateurs::cuda {

std::string Attention::text() const {
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  return "attention of " + number(batch) + "x" + number(heads) + " (" + number(kv_heads) +
         ") heads of " + number(dim) + ", " + number(queries) + " queries, " + number(keys) +
         " keys, blocks of " + number(pattern.block);
}

namespace {

// Heads whose tiles have two fragments of queries to a warp; those of wider ones would not fit into
// registers.
constexpr int WIDEST_OF_TWO = 64;

// A warp has FRAGMENTS times 16 queries.
template <class T_, int D_, int WARPS_, int FRAGMENTS_>
struct AttentionTile {
  using T = T_;
  static constexpr int D = D_, WARPS = WARPS_, FRAGMENTS = FRAGMENTS_;
  static constexpr int OF_WARP = FRAGMENTS * 16, QUERIES = WARPS * OF_WARP, KEYS = 64;
  static constexpr int THREADS = WARPS * 32;
  static constexpr int CHUNKS = D / 8;      // of 16 bytes in a row
  static constexpr int ROW = CHUNKS | 1;    // odd: eight rows' chunks fall into different banks
  static constexpr int STAGE = KEYS * ROW;  // chunks of a stage, of keys as of values
  static constexpr int LOOK_UPS = 3;        // steps whose places are kept
  static constexpr int PIECE = QUERIES * (D + 4);  // floats of a part: sums, highest, weight
  static constexpr int BYTES = (QUERIES * ROW + 4 * STAGE) * 16 + LOOK_UPS * sizeof(Places<KEYS>);
  static_assert(D % 16 == 0 && KEYS % 64 == 0 && BYTES <= 99 * 1024);
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
  auto* places = reinterpret_cast<Places<C::KEYS>*>(stages + 4 * C::STAGE);

  KeyStack<C> stack(p, b);
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

  std::uint32_t query[C::FRAGMENTS][C::D / 16][4];
  float out[C::FRAGMENTS][C::D / 8][4] = {}, top[C::FRAGMENTS][2], total[C::FRAGMENTS][2] = {};
  const float scale = p.scale * 1.4426950408889634f;  // weights are powers of two
  int rows[C::FRAGMENTS][2];
#pragma unroll
  for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[f][i] = -INFINITY;
      rows[f][i] = row_of(s, first, warp * C::OF_WARP + f * 16 + lane / 4 + i * 8).at;
    }
  // Of the queries of this warp, the one that sees least.
  const int least = s.cut.heads == 1 ? first + warp * C::OF_WARP : 0;

  for (int step = begin; step < end; ++step) {
    ptx::wait_copies<0>();
    ptx::sync_block();
    if (step + 1 < end) load(step + 1);
    ptx::commit_copies();
    stack.look_up(step + 2, places[(step + 2) % C::LOOK_UPS]);
    if (step == begin) {
#pragma unroll
      for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
        for (int d = 0; d < C::D / 16; ++d)
          ptx::load_matrices(
              query[f][d],
              q_tile + (warp * C::OF_WARP + f * 16 + lane % 16) * C::ROW + d * 2 + lane / 16);
    }

    const uint4* keys = stages + step % 2 * 2 * C::STAGE;
    float score[C::FRAGMENTS][C::KEYS / 8][4] = {};
#pragma unroll
    for (int d = 0; d < C::D / 16; ++d)
#pragma unroll
      for (int n = 0; n < C::KEYS / 16; ++n) {
        std::uint32_t pair[4];
        ptx::load_matrices(
            pair, keys + (n * 16 + lane / 16 * 8 + lane % 8) * C::ROW + d * 2 + lane / 8 % 2);
#pragma unroll
        for (int f = 0; f < C::FRAGMENTS; ++f) {
          ptx::multiply<T>(score[f][n * 2], query[f][d], pair[0], pair[1]);
          ptx::multiply<T>(score[f][n * 2 + 1], query[f][d], pair[2], pair[3]);
        }
      }

    const Places<C::KEYS>& place = places[step % C::LOOK_UPS];
    if (!stack.all_seen(place, least + offset)) {
#pragma unroll
      for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Sight<C> sight(stack, place, rows[f][i], rows[f][i] + offset);
#pragma unroll
          for (int n = 0; n < C::KEYS / 8; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j)
              if (!sight.sees(n, j)) score[f][n][i * 2 + j] = -INFINITY;
        }
    }

    const uint4* values = keys + C::STAGE;
#pragma unroll
    for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float highest = top[f][i];
#pragma unroll
        for (int n = 0; n < C::KEYS / 8; ++n)
          highest = fmaxf(highest, fmaxf(score[f][n][i * 2], score[f][n][i * 2 + 1]));
        highest = fmaxf(highest, ptx::shuffle_xor(highest, 1));
        highest = fmaxf(highest, ptx::shuffle_xor(highest, 2));
        const float base = highest == -INFINITY ? 0.f : highest * scale;  // nothing seen yet
        const float shrink = ptx::exp2(top[f][i] * scale - base);
        top[f][i] = highest;
        total[f][i] *= shrink;
#pragma unroll
        for (int d = 0; d < C::D / 8; ++d) {
          out[f][d][i * 2] *= shrink;
          out[f][d][i * 2 + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < C::KEYS / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& weight = score[f][n][i * 2 + j];
            weight = ptx::exp2(weight * scale - base);
            total[f][i] += weight;
          }
      }
#pragma unroll
    for (int n = 0; n < C::KEYS / 16; ++n) {
      std::uint32_t weight[C::FRAGMENTS][4];
#pragma unroll
      for (int f = 0; f < C::FRAGMENTS; ++f) {
        const auto &left = score[f][n * 2], &right = score[f][n * 2 + 1];
        weight[f][0] = packed<T>(left[0], left[1]);
        weight[f][1] = packed<T>(left[2], left[3]);
        weight[f][2] = packed<T>(right[0], right[1]);
        weight[f][3] = packed<T>(right[2], right[3]);
      }
#pragma unroll
      for (int d = 0; d < C::D / 16; ++d) {
        std::uint32_t pair[4];
        ptx::load_matrices_transposed(pair,
                                      values + (n * 16 + lane % 16) * C::ROW + d * 2 + lane / 16);
#pragma unroll
        for (int f = 0; f < C::FRAGMENTS; ++f) {
          ptx::multiply<T>(out[f][d * 2], weight[f], pair[0], pair[1]);
          ptx::multiply<T>(out[f][d * 2 + 1], weight[f], pair[2], pair[3]);
        }
      }
    }
  }
  ptx::wait_copies<0>();
  ptx::sync_block();
#pragma unroll
  for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      total[f][i] += ptx::shuffle_xor(total[f][i], 1);
      total[f][i] += ptx::shuffle_xor(total[f][i], 2);
    }

  if (s.cut.parts) {
    const std::int64_t tile_of_all = (std::int64_t{b} * gridDim.y + blockIdx.y) * s.tiles + tile;
    float* piece = p.partial + (tile_of_all * parts + part) * C::PIECE;
#pragma unroll
    for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* row = piece + (warp * C::OF_WARP + f * 16 + lane / 4 + i * 8) * (C::D + 4);
#pragma unroll
        for (int d = 0; d < C::D / 8; ++d)
          reinterpret_cast<float2*>(row)[d * 4 + lane % 4] = {out[f][d][i * 2],
                                                              out[f][d][i * 2 + 1]};
        if (lane % 4 == 0)
          reinterpret_cast<float2*>(row)[C::D / 2] = {top[f][i] * scale, total[f][i]};
      }
    return;
  }
  // Through the warp's own rows of shared memory, to be stored 16 bytes at a time.
  auto* words = reinterpret_cast<std::uint32_t*>(q_tile + warp * C::OF_WARP * C::ROW);
#pragma unroll
  for (int f = 0; f < C::FRAGMENTS; ++f)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float inverse = total[f][i] == 0 ? 0.f : 1 / total[f][i];
#pragma unroll
      for (int d = 0; d < C::D / 8; ++d)
        words[((f * 16 + lane / 4 + i * 8) * C::ROW + d) * 4 + lane % 4] =
            packed<T>(out[f][d][i * 2] * inverse, out[f][d][i * 2 + 1] * inverse);
    }
  ptx::sync_warp();
  for (int t = lane; t < C::OF_WARP * C::CHUNKS; t += 32) {
    const int row = warp * C::OF_WARP + t / C::CHUNKS, chunk = t % C::CHUNKS;
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
  if (s.cut.queries == 16) return of_tile<AttentionTile<T, D, 1, 1>>(s, where);
  if constexpr (D <= WIDEST_OF_TWO) {
    if (s.cut.queries == 128) return of_tile<AttentionTile<T, D, 4, 2>>(s, where);
    of_tile<AttentionTile<T, D, 2, 2>>(s, where);
  } else {
    of_tile<AttentionTile<T, D, 4, 1>>(s, where);
  }
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
  if (!few && p.dim <= WIDEST_OF_TWO && (!p.pattern.block || p.pattern.block >= 128)) {
    // Larger tiles read keys and values less often, where there are enough of them.
    const std::int64_t tiles = (p.queries + 127) / 128;
    if (tiles * p.heads * p.batch >= multiprocessors) cut.queries = 128;
  }
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
