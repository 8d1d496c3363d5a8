// out = softmax(scale q k^T + mask) v, with the online softmax of FlashAttention (Dao et al., 2022).
//
// A thread takes one head of one sequence and a chunk of its queries, tile by tile. Each tile visits
// the keys it may see in pieces, and carries its maxima, sums and weighted values from one piece to
// the next. `Method` multiplies a piece (panels.h, tiles.h; few queries go through rows.h instead).
// This file decides which pieces there are:
//
//   dense     keys that key_mask hides are left out altogether: padding costs nothing
//   pattern   the stored blocks, in place; padding inside them scores -inf
//
// Keys stand in slots, numbered as they are visited. A piece is packed for the products when the
// first tile visits it, and then serves all tiles of the chunk.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/attention/panels.h"
#include "cpu/kernels/attention/rows.h"
#include "cpu/kernels/share.h"
#ifdef SECATEURS_TILES
  #include "cpu/kernels/attention/tiles.h"
#endif
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t resident_keys = 1 << 18;  // floats of packed keys and values that stay in L2
constexpr int64_t chunk_queries = 1024;     // that carry their sums over several resident parts

template <class Method>
class AttentionSolver {
  using T = typename Method::Element;
  static constexpr int64_t tile_queries = Method::tile_queries;

 public:
  explicit AttentionSolver(const Attention<T>& p) : p(p) {
    piece = p.pattern.indptr && p.pattern.block < Method::longest_piece ? p.pattern.block
                                                                        : Method::longest_piece;
    unit = piece < Method::least_packed ? Method::least_packed : piece;
    tiles = ceil_div(p.queries, tile_queries);
    const int64_t all = ceil_div(p.keys, 128) * 128;
    resident = clamp(resident_keys / Method::key_floats(p.dim) / 128 * 128, 128, all ? all : 128);
    const int64_t sequences = p.batch * p.heads;
    threads = sequences * p.queries * p.keys * p.dim < serial_limit ? 1 : p.threads;
    const int64_t least = resident < all ? ceil_div(p.queries, chunk_queries) : 1;
    chunks = clamp(ceil_div(threads * items_per_thread, sequences), least, tiles);
    states = resident < all ? ceil_div(tiles, chunks) + 1 : Method::live_tiles;
  }

  void run() const {
    SharedItems items(p.batch * p.heads * chunks, threads);
    in_parallel(threads, [&] {
      [[maybe_unused]] const typename Method::Session session;
      items.visit([&](int64_t i) {
        solve(i / chunks / p.heads, i / chunks % p.heads, cut(tiles, chunks, i % chunks),
              cut(tiles, chunks, i % chunks + 1));
      });
    });
  }

 private:
  const Attention<T>& p;
  int64_t piece, unit;  // keys visited and keys packed at a time
  int64_t tiles, chunks, states;
  int64_t resident;  // slots packed at a time
  int threads;

  void solve(int64_t b, int64_t h, int64_t tile0, int64_t tile1) const {
    const int64_t padded = p.keys + 2 * unit, units = ceil_div(resident, unit) + 1;
    const int64_t tile_floats = Method::tile_floats(p.dim);
    Arena arena{scratch(1, static_cast<std::size_t>(padded + units + states * tile_floats +
                                                    Method::work_floats(p.dim, resident) + 128))};
    auto* position = reinterpret_cast<std::int32_t*>(arena.take(padded));
    auto* packed = reinterpret_cast<bool*>(arena.take(units));
    float* state = arena.take(states * tile_floats);

    const int64_t last = tile1 * tile_queries < p.queries ? tile1 * tile_queries : p.queries;
    const Head<T> head(p, b, h, position, place_keys(b, last - 1, position, padded));
    Method method(head, piece, resident, arena);
    int64_t begin = 0;
    do {
      const int64_t end = head.slots - begin < resident ? head.slots : begin + resident;
      for (int64_t i = 0; i < units; ++i) packed[i] = false;
      method.place(begin);
      for (int64_t t = tile0; t < tile1; ++t) {
        const int64_t query = t * tile_queries, left = p.queries - query;
        method.enter(state + (t - tile0) % states * tile_floats, query,
                     static_cast<int>(left < tile_queries ? left : tile_queries), begin == 0);
        for_each_piece(head, query, begin, end, [&](int64_t slot, const bool* allowed) {
          const int64_t reach = slot - begin + (piece < unit ? unit : piece);
          for (int64_t i = (slot - begin) / unit; i * unit < reach; ++i)
            if (!packed[i]) {
              method.pack_keys(begin + i * unit);
              packed[i] = true;
            }
          method.visit(slot, allowed);
        });
        method.leave(end == head.slots);
      }
      method.drain();
      begin = end;
    } while (begin < head.slots);
  }

  // Fills in the key of each slot, in ascending order where there is no pattern. Returns the number
  // of slots.
  int64_t place_keys(int64_t b, int64_t last_query, std::int32_t* position, int64_t padded) const {
    const bool* seen = p.key_mask ? p.key_mask + b * p.keys : nullptr;
    const int64_t limit = p.causal ? last_query + p.keys - p.queries + 1 : p.keys;
    int64_t slots = 0;
    for (int64_t j = 0; j < p.keys && j < limit; ++j)
      if (!seen || seen[j])
        position[slots++] = static_cast<std::int32_t>(j);
      else if (p.pattern.indptr)
        position[slots++] = no_key;
    for (int64_t i = slots; i < padded; ++i) position[i] = no_key;
    return slots;
  }

  // Calls visit(slot, mask) for each piece between two slots that the tile of queries at `query`
  // may see.
  template <class Visit>
  void for_each_piece(const Head<T>& head, int64_t query, int64_t begin, int64_t end,
                      const Visit& visit) const {
    const int64_t last = query + tile_queries < p.queries ? query + tile_queries : p.queries;
    const int64_t limit = head.last_key(last - 1);
    if (!p.pattern.indptr) {
      for (int64_t s = begin; s < end && head.position[s] <= limit; s += piece) visit(s, nullptr);
      return;
    }
    const BlockPattern& pattern = p.pattern;
    const int64_t block = pattern.block, inside = query % block;
    const std::int32_t* row =
        pattern.indptr + (pattern.per_head ? head.h * (pattern.rows + 1) : 0) + query / block;
    for (int64_t n = row[0]; n < row[1]; ++n)
      for (int64_t part = 0; part < block; part += piece) {
        const int64_t s = pattern.indices[n] * block + part;
        if (s < begin || s >= end || s > limit) continue;
        const int64_t which = pattern.partial[n];
        visit(s, which < 0 ? nullptr : pattern.masks + (which * block + inside) * block + part);
      }
  }
};

// Keeps a tile of queries within one row of blocks. Uses one vector where there are few queries.
template <class Wide, class Narrow, class T>
void solve_attention(const Attention<T>& p) {
  if (p.queries <= Narrow::tile_queries ||
      (p.pattern.indptr && p.pattern.block < Wide::tile_queries))
    AttentionSolver<Narrow>(p).run();
  else
    AttentionSolver<Wide>(p).run();
}

template <class T>
void attention(const Attention<T>& p) {
  if (!p.batch || !p.heads || !p.queries || !p.dim) return;
  if (p.queries <= most_rows) return RowAttention<T>(p).run();
#ifdef SECATEURS_TILES
  if constexpr (sizeof(T) == sizeof(bf16))
    return solve_attention<TileAttention<2>, TileAttention<1>>(p);
#endif
#ifdef SECATEURS_PAIR_PRODUCTS
  if constexpr (sizeof(T) == sizeof(float))
    if (!p.short_products)
      return solve_attention<PanelAttention<T, float, 2>, PanelAttention<T, float, 1>>(p);
  solve_attention<PanelAttention<T, Pair, 2>, PanelAttention<T, Pair, 1>>(p);
#else
  solve_attention<PanelAttention<T, float, 2>, PanelAttention<T, float, 1>>(p);
#endif
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
