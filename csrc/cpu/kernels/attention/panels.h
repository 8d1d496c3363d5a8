// A piece of keys by panels, in float arithmetic.
//
// Everything is kept transposed, queries side by side in a vector, so that maxima, sums and
// rescaling are vertical and both products are panels:
//
//                 queries of a tile ->
//    keys  |  S^T = K Q^T         rows of K broadcast (packed), Q^T read as vectors
//     v    |  P^T = 2^(S^T - m)   in place; scores are in units of log2 e
//    dims  |  O^T += V^T P^T      columns of V broadcast, P^T read as vectors
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/panel.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

template <class T, int NV>
class PanelAttention {
  static constexpr int tile_rows = F::tile_rows(NV);

 public:
  using Element = T;
  struct Session {};  // nothing to set up for a thread
  static constexpr int tile_queries = NV * F::width;
  static constexpr int live_tiles = 1;
  static constexpr int64_t longest_piece = 128;  // S^T of a tile: 16 KB, in L1
  static constexpr int64_t least_packed = 16;

  static int64_t key_floats(int64_t dim) { return 2 * dim; }
  static int64_t tile_floats(int64_t dim) {
    return ceil_div(2 * (dim + 1) * tile_queries, 16) * 16 + 64;
  }
  static int64_t work_floats(int64_t dim, int64_t resident) {
    return 2 * (resident + longest_piece) * dim + longest_piece * tile_queries + dim + 128;
  }

  PanelAttention(const Head<T>& head, int64_t piece, int64_t resident, Arena& arena)
      : p(head.p),
        head(head),
        piece(piece),
        keys(arena.take((resident + longest_piece) * p.dim)),
        values(arena.take((resident + longest_piece) * p.dim)),
        scores(arena.take(longest_piece * tile_queries)),
        zeros(reinterpret_cast<T*>(arena.take(p.dim))) {
    __builtin_memset(zeros, 0, static_cast<std::size_t>(p.dim) * sizeof(float));
  }

  // The slot that is packed first from now on.
  void place(int64_t slot) { base = slot; }

  void pack_keys(int64_t slot) const {
    const int64_t count = count_from(slot), parts = ceil_div(count, tile_rows);
    float* to = keys + (slot - base) * p.dim;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(count, parts, i);
      const int rows = static_cast<int>(cut(count, parts, i + 1) - first);
      pack([&](int j) { return or_zeros(head.key(slot + first + j)); }, rows, p.dim, 1,
           to + first * p.dim, rows);
    }
    for (int64_t j = 0; j < count; ++j) {
      prefetch(slot + piece + j);
      const T* from = or_zeros(head.value(slot + j));
      float* row = values + (slot - base + j) * p.dim;
      int64_t d = 0;
      for (; d + F::width <= p.dim; d += F::width) store(row + d, load(from + d));
      if (d < p.dim) {
        const int left = static_cast<int>(p.dim - d);
        store(row + d, load(from + d, left), left);
      }
    }
  }

  // Queries `first` .. `first` + count, whose sums are, or after a fresh start will be, in `state`.
  void enter(float* state, int64_t first, int queries, bool fresh) {
    Arena arena{state};
    q = arena.take(p.dim * tile_queries);
    o = arena.take(p.dim * tile_queries);
    top = arena.take(tile_queries);
    sum = arena.take(tile_queries);
    query = first;
    count = queries;
    if (!fresh) return;
    for (int64_t i = 0; i < p.dim * tile_queries; ++i) q[i] = o[i] = 0;
    for (int i = 0; i < tile_queries; ++i) {
      top[i] = -infinity;
      sum[i] = 0;
    }
    pack([&](int i) { return head.query(query + i); }, count, p.dim, p.scale * log2_e, q,
         tile_queries);
  }

  // The keys in the slots from `slot` on; allowed [queries][keys], rows a block apart, or null.
  void visit(int64_t slot, const bool* allowed) const {
    const int64_t keys_seen = count_from(slot);
    score(slot, keys_seen);
    if (head.mask || allowed) add_mask(slot, keys_seen, allowed);
    if (!head.sees_all(query, slot, keys_seen)) hide(slot, keys_seen);
    absorb(slot, keys_seen);
  }

  void leave(bool last) const {
    if (!last) return;
    for (int v = 0; v < NV; ++v) {
      // The largest score alone contributes 1; only where no key was seen is the sum 0.
      const F inverse = set1(1) / max(set1(1e-30f), load(sum + v * F::width));
      for (int64_t d = 0; d < p.dim; ++d) {
        float* to = o + d * tile_queries + v * F::width;
        store(to, load(to) * inverse);
      }
    }
    pack([&](int d) { return o + d * tile_queries; }, static_cast<int>(p.dim), count, 1,
         head.output(query), p.heads * p.dim);
  }

  void drain() const {}

 private:
  const Attention<T>& p;
  const Head<T>& head;
  int64_t piece, base = 0;
  float *keys, *values;  // piece after piece: [dim][keys of a panel] by panels, [keys][dim]
  float* scores;         // [keys][queries], and then probabilities
  T* zeros;
  // State of the tile: scaled queries [dim][queries]; outputs [dim][queries], not yet divided by
  // the sum; the largest score so far; the sum of 2^(score - top).
  float *q, *o, *top, *sum;
  int64_t query;
  int count;

  int64_t count_from(int64_t slot) const {
    return head.slots - slot < piece ? head.slots - slot : piece;
  }
  const T* or_zeros(const T* row) const { return row ? row : zeros; }

  // Prefetches: rows of a projection are pages apart, and the hardware does not prefetch across
  // pages.
  void prefetch(int64_t slot) const {
    if (slot >= head.slots || head.position[slot] == no_key) return;
    for (int64_t d = 0; d < p.dim; d += 64 / static_cast<int64_t>(sizeof(T))) {
      __builtin_prefetch(head.key(slot) + d);
      __builtin_prefetch(head.value(slot) + d);
    }
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

  void score(int64_t slot, int64_t keys_seen) const {
    Panel<float> panel{};
    panel.a = keys + (slot - base) * p.dim;
    panel.depth = p.dim;
    panel.w = q;
    panel.c = scores;
    product(panel, keys_seen, true);
  }

  // Transposes the mask, square by square: its keys lie side by side.
  void add_mask(int64_t slot, int64_t keys_seen, const bool* allowed) const {
    constexpr int W = F::width;
    for (int64_t i0 = 0; i0 < count; i0 += W)
      for (int64_t j0 = 0; j0 < keys_seen; j0 += W) {
        const int width = keys_seen - j0 < W ? static_cast<int>(keys_seen - j0) : W;
        F r[W];
        for (int i = 0; i < W; ++i) {
          const int64_t row = i0 + i < count ? i0 + i : count - 1;
          r[i] = head.mask ? explicit_mask(row, slot + j0, width) : zero();
          if (allowed) {
            // A row of a block is whole, even where the keys have come to their end.
            const bool* from = allowed + row * p.pattern.block + j0;
            float seen[W];
            for (int j = 0; j < W; ++j) seen[j] = static_cast<float>(from[j]);
            r[i] = select(load(seen) < set1(0.5f), set1(-infinity), r[i]);
          }
        }
        transpose(r);
        for (int j = 0; j < width; ++j) {
          float* s = scores + (j0 + j) * tile_queries + i0;
          const F minus_infinity = set1(-infinity);
          store(s, select(r[j] < set1(-__FLT_MAX__), minus_infinity, load(s) + r[j]));
        }
      }
  }

  F explicit_mask(int64_t i, int64_t slot, int width) const {
    const float* mask = head.mask + (query + i) * p.mask_stride.row;
    float row[F::width] = {};
    for (int j = 0; j < width; ++j)
      if (head.position[slot + j] != no_key) row[j] = mask[head.position[slot + j]];
    return load(row) * set1(log2_e);
  }

  void hide(int64_t slot, int64_t keys_seen) const {
    const F last = p.causal ? iota() + set1(static_cast<float>(head.last_key(query)))
                            : set1(static_cast<float>(p.keys));
    for (int64_t j = 0; j < keys_seen; ++j) {
      const F key = set1(static_cast<float>(head.position[slot + j]));
      for (int v = 0; v < NV; ++v) {
        float* s = scores + j * tile_queries + v * F::width;
        const Mask past = last + set1(static_cast<float>(p.causal ? v * F::width : 0)) < key;
        store(s, select(past, set1(-infinity), load(s)));
      }
    }
  }

  // Turns scores into probabilities relative to the largest so far; adds up the weighted values.
  void absorb(int64_t slot, int64_t keys_seen) const {
    for (int v = 0; v < NV; ++v) {
      float* s = scores + v * F::width;
      const F before = load(top + v * F::width);
      F now = before;
      for (int64_t j = 0; j < keys_seen; ++j) now = max(load(s + j * tile_queries), now);
      // Where all is hidden so far, any finite number will do.
      const F base = select(now < set1(-__FLT_MAX__), zero(), now);
      const F shrink = exp2(before - base);
      F total = zero();
      for (int64_t j = 0; j < keys_seen; ++j) {
        const F weight = exp2(load(s + j * tile_queries) - base);
        total = total + weight;
        store(s + j * tile_queries, weight);
      }
      store(top + v * F::width, now);
      store(sum + v * F::width, fma(load(sum + v * F::width), shrink, total));
      for (int64_t d = 0; d < p.dim; ++d) {
        float* to = o + d * tile_queries + v * F::width;
        store(to, load(to) * shrink);
      }
    }
    Panel<float> panel{};
    panel.a = values + (slot - base) * p.dim;
    panel.a_stride = p.dim;
    panel.depth = keys_seen;
    panel.w = scores;
    panel.c = o;
    panel.accumulate = true;
    product(panel, p.dim, false);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
