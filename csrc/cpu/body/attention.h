// out = softmax(scale q k^T + mask) v, float32, with the online softmax of FlashAttention
// (Dao et al., 2022).
//
// Everything is kept transposed, queries side by side in a vector, so that maxima, sums and
// rescaling are vertical and both products are panels:
//
//                 queries of a tile ->
//    keys  |  S^T = K Q^T         rows of K broadcast (packed), Q^T read as vectors
//     v    |  P^T = 2^(S^T - m)   in place; scores are in units of log2 e
//    dims  |  O^T += V^T P^T      columns of V broadcast, P^T read as vectors
//
// A thread takes one head of one sequence and a chunk of query tiles; it packs each block of keys
// once for all of them. Keys that key_mask hides are not packed at all: padding costs nothing.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/math.h"
#include "cpu/body/pack.h"
#include "cpu/body/panel.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t key_block = 128;      // S^T of a tile: 16 KB, in L1
constexpr int64_t tiles_per_chunk = 8;  // query tiles that share a packed block of keys
constexpr float log2_e = 1.44269504f;

template <int NV>
class AttentionSolver {
  static constexpr int tile_queries = NV * F::width;
  static constexpr int tile_rows = F::tile_rows(NV);

 public:
  explicit AttentionSolver(const Attention<float>& p) : p(p) {
    tiles = ceil_div(p.queries, tile_queries);
    const int64_t sequences = p.batch * p.heads;
    threads = sequences * p.queries * p.keys * p.dim < serial_limit ? 1 : p.threads;
    chunks = clamp(ceil_div(threads * items_per_thread, sequences),
                   ceil_div(tiles, tiles_per_chunk), tiles);
    chunk_tiles = ceil_div(tiles, chunks);
  }

  void run() const {
    const int64_t items = p.batch * p.heads * chunks;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < items; ++i) {
      const int64_t tile0 = cut(tiles, chunks, i % chunks),
                    tile1 = cut(tiles, chunks, i % chunks + 1);
      solve(i / chunks / p.heads, i / chunks % p.heads, tile0, tile1);
    }
  }

 private:
  const Attention<float>& p;
  int64_t tiles, chunks, chunk_tiles;
  int threads;

  // What is carried from one block of keys to the next, for one tile of queries.
  struct Tile {
    float* q;    // [dim][queries], scaled
    float* o;    // [dim][queries], not yet divided by sum
    float* top;  // [queries], the largest score so far
    float* sum;  // [queries], of 2^(score - top)
    int64_t query;
    int count;
  };

  // A block of keys as the products want it.
  struct Block {
    const std::int32_t* position;
    int64_t count;
    float* k;  // tile after tile, [dim][keys of the tile]
    float* v;  // [keys][dim]
    float* s;  // [keys][queries], scores and then probabilities of one tile
  };

  // Working memory of a thread, handed out piece by piece.
  struct Arena {
    float* next;
    float* take(int64_t count) {
      float* piece = next;
      next += ceil_div(count, 16) * 16;
      return piece;
    }
  };

  std::size_t arena_size() const {
    const int64_t tile = 2 * p.dim * tile_queries + 2 * tile_queries;
    const int64_t block = 2 * key_block * p.dim + key_block * tile_queries;
    return static_cast<std::size_t>(chunk_tiles * (tile + 64) + block + 64 + p.keys);
  }

  void solve(int64_t b, int64_t h, int64_t tile0, int64_t tile1) const {
    Arena arena{scratch(1, arena_size())};
    const int64_t g = p.kv_of[h];
    const float* k = p.k + b * p.k_stride.batch + g * p.k_stride.head;
    const float* v = p.v + b * p.v_stride.batch + g * p.v_stride.head;

    Tile tile[tiles_per_chunk];
    for (int64_t t = tile0; t < tile1; ++t) tile[t - tile0] = open(arena, b, h, t * tile_queries);

    const int64_t last_query = tile[tile1 - tile0 - 1].query + tile[tile1 - tile0 - 1].count - 1;
    auto* position = reinterpret_cast<std::int32_t*>(arena.take(p.keys));
    const int64_t keys = visible_keys(b, last_query, position);
    Block block{nullptr, 0, arena.take(key_block * p.dim), arena.take(key_block * p.dim),
                arena.take(key_block * tile_queries)};
    for (int64_t first = 0; first < keys; first += key_block) {
      block.position = position + first;
      block.count = keys - first < key_block ? keys - first : key_block;
      gather(block, k, v);
      for (int64_t t = 0; t < tile1 - tile0; ++t)
        if (!hidden(block.position[0], tile[t].query + tile[t].count - 1)) {
          score(block, tile[t], b, h);
          absorb(block, tile[t]);
        }
    }
    for (int64_t t = 0; t < tile1 - tile0; ++t) close(tile[t], b, h);
  }

  bool hidden(int64_t key, int64_t query) const {
    return p.causal && key > query + p.keys - p.queries;
  }

  // The keys that any query up to `last_query` may attend, ascending.
  int64_t visible_keys(int64_t b, int64_t last_query, std::int32_t* position) const {
    int64_t count = 0;
    for (int64_t j = 0; j < p.keys && !hidden(j, last_query); ++j)
      if (!p.key_mask || p.key_mask[b * p.keys + j])
        position[count++] = static_cast<std::int32_t>(j);
    return count;
  }

  Tile open(Arena& arena, int64_t b, int64_t h, int64_t query) const {
    const int64_t left = p.queries - query;
    Tile tile{arena.take(p.dim * tile_queries),
              arena.take(p.dim * tile_queries),
              arena.take(tile_queries),
              arena.take(tile_queries),
              query,
              static_cast<int>(left < tile_queries ? left : tile_queries)};
    const float* q = p.q + b * p.q_stride.batch + h * p.q_stride.head + query * p.q_stride.row;
    for (int64_t i = 0; i < p.dim * tile_queries; ++i) tile.q[i] = tile.o[i] = 0;
    for (int i = 0; i < tile_queries; ++i) {
      tile.top[i] = -__builtin_inff();
      tile.sum[i] = 0;
    }
    pack([&](int i) { return q + i * p.q_stride.row; }, tile.count, p.dim, p.scale * log2_e, tile.q,
         tile_queries);
    return tile;
  }

  void gather(Block& block, const float* k, const float* v) const {
    const int64_t parts = ceil_div(block.count, tile_rows);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(block.count, parts, i);
      const int rows = static_cast<int>(cut(block.count, parts, i + 1) - first);
      const auto key = [&](int j) { return k + block.position[first + j] * p.k_stride.row; };
      pack(key, rows, p.dim, 1, block.k + first * p.dim, rows);
    }
    for (int64_t j = 0; j < block.count; ++j)
      __builtin_memcpy(block.v + j * p.dim, v + block.position[j] * p.v_stride.row,
                       static_cast<std::size_t>(p.dim) * sizeof(float));
  }

  // c (+)= a^T w for `rows` columns of a, in panels.
  static void product(Panel<float> panel, int64_t rows, bool packed) {
    static constexpr std::int32_t whole = 0;
    panel.index = &whole;
    panel.blocks = 1;
    panel.w_stride = panel.c_stride = tile_queries;
    const float* a = panel.a;
    float* c = panel.c;
    const int64_t parts = ceil_div(rows, tile_rows);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(rows, parts, i), height = cut(rows, parts, i + 1) - first;
      panel.a = a + first * (packed ? panel.depth : 1);
      if (packed) panel.a_stride = height;
      panel.c = c + first * tile_queries;
      panel_for<float, NV, false>(static_cast<int>(height))(panel);
    }
  }

  void score(const Block& block, const Tile& tile, int64_t b, int64_t h) const {
    Panel<float> panel{};
    panel.a = block.k;
    panel.depth = p.dim;
    panel.w = tile.q;
    panel.c = block.s;
    product(panel, block.count, true);
    if (p.mask) {
      const float* mask = p.mask + b * p.mask_stride.batch + h * p.mask_stride.head;
      for (int i = 0; i < tile.count; ++i) {
        const float* row = mask + (tile.query + i) * p.mask_stride.row;
        for (int64_t j = 0; j < block.count; ++j)
          block.s[j * tile_queries + i] += row[block.position[j]] * log2_e;
      }
    }
    if (!p.causal) return;
    const F query = iota() + set1(static_cast<float>(tile.query + p.keys - p.queries));
    for (int64_t j = block.count; j-- && hidden(block.position[j], tile.query);)
      for (int v = 0; v < NV; ++v) {
        float* s = block.s + j * tile_queries + v * F::width;
        const Mask past = query + set1(static_cast<float>(v * F::width)) <
                          set1(static_cast<float>(block.position[j]));
        store(s, select(past, set1(-__builtin_inff()), load(s)));
      }
  }

  // Scores become probabilities relative to the largest so far, and the values they weigh are added
  // up.
  void absorb(const Block& block, const Tile& tile) const {
    for (int v = 0; v < NV; ++v) {
      float* s = block.s + v * F::width;
      float *top = tile.top + v * F::width, *sum = tile.sum + v * F::width;
      const F before = load(top);
      F now = before;
      for (int64_t j = 0; j < block.count; ++j) now = max(load(s + j * tile_queries), now);
      // Where all is hidden so far, any finite number will do.
      const F base = select(now < set1(-__FLT_MAX__), zero(), now);
      const F shrink = exp2(before - base);
      F total = load(sum) * shrink;
      for (int64_t j = 0; j < block.count; ++j) {
        const F weight = exp2(load(s + j * tile_queries) - base);
        total = total + weight;
        store(s + j * tile_queries, weight);
      }
      store(top, now);
      store(sum, total);
      for (int64_t d = 0; d < p.dim; ++d) {
        float* o = tile.o + d * tile_queries + v * F::width;
        store(o, load(o) * shrink);
      }
    }
    Panel<float> panel{};
    panel.a = block.v;
    panel.a_stride = p.dim;
    panel.depth = block.count;
    panel.w = block.s;
    panel.c = tile.o;
    panel.accumulate = true;
    product(panel, p.dim, false);
  }

  void close(const Tile& tile, int64_t b, int64_t h) const {
    for (int v = 0; v < NV; ++v) {
      // The largest score alone contributes 1; only where no key was seen is the sum 0.
      const F inverse = set1(1) / max(set1(1e-30f), load(tile.sum + v * F::width));
      for (int64_t d = 0; d < p.dim; ++d) {
        float* o = tile.o + d * tile_queries + v * F::width;
        store(o, load(o) * inverse);
      }
    }
    float* out = p.out + ((b * p.queries + tile.query) * p.heads + h) * p.dim;
    pack([&](int d) { return tile.o + d * tile_queries; }, static_cast<int>(p.dim), tile.count, 1,
         out, p.heads * p.dim);
  }
};

void attention(const Attention<float>& p) {
  if (!p.batch || !p.heads || !p.queries || !p.dim) return;
  if (p.queries <= F::width)
    AttentionSolver<1>(p).run();
  else
    AttentionSolver<2>(p).run();
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
