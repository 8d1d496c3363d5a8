// A piece of keys by panels, in float arithmetic, or with products of pairs of bfloat16, to which
// elements and weights are rounded.
//
// Everything is kept transposed, queries side by side in a vector, so that maxima, sums and
// rescaling are vertical and both products are panels:
//
//                 queries of a tile ->
//    keys  |  S^T = K Q^T         rows of K broadcast (packed), Q^T read as vectors
//     v    |  P^T = 2^(S^T - m)   in place; m is in units of log2 e
//    dims  |  O^T += V^T P^T      columns of V broadcast, P^T read as vectors
//
// A pair holds two dims of K and Q, two keys of V and P.
#pragma once

#include <type_traits>

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/panel.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

#ifdef SECATEURS_PAIR_PRODUCTS
// A row as words, each a pair of neighbours.
template <class T>
struct PairsOfRow {
  const T* at;
  int64_t left;  // elements

  PairsOfRow operator+(int64_t words) const { return {at + 2 * words, left - 2 * words}; }
};
template <class T>
inline F load(const PairsOfRow<T>& row, int = F::width) {
  return pairs(row.at, row.left);
}
#endif

// What a thread sets up for panels of floats.
struct Nothing {};

// Panels of words, float or Pair.
template <class T, class Word, int NV>
class PanelAttention {
  static constexpr int tile_rows = F::tile_rows(NV);
  static constexpr bool in_pairs = std::is_same_v<Word, Pair>;
  static constexpr int per_word = in_pairs ? 2 : 1;

  static int64_t words(int64_t elements) { return ceil_div(elements, per_word); }

 public:
  using Element = T;
#ifdef SECATEURS_PAIR_PRODUCTS
  using Session = std::conditional_t<in_pairs, FlushToZero, Nothing>;
#else
  using Session = Nothing;
#endif
  static constexpr int tile_queries = NV * F::width;
  static constexpr int live_tiles = 1;
  static constexpr int64_t longest_piece = 128;  // S^T of a tile: 16 KB, in L1
  static constexpr int64_t least_packed = 16;

  static int64_t key_floats(int64_t dim) { return 2 * words(dim); }
  static int64_t tile_floats(int64_t dim) {
    return ceil_div(2 * (dim + 1) * tile_queries, 16) * 16 + 64;
  }
  static int64_t work_floats(int64_t dim, int64_t resident) {
    return (resident + longest_piece) * (words(dim) + dim / per_word + 1) +
           longest_piece * tile_queries + dim + 128;
  }

  PanelAttention(const Head<T>& head, int64_t piece, int64_t resident, Arena& arena)
      : p(head.p),
        head(head),
        piece(piece),
        keys(arena.take((resident + longest_piece) * words(p.dim))),
        values(arena.take(words(resident + longest_piece) * p.dim)),
        scores(arena.take(longest_piece * tile_queries)),
        zeros(reinterpret_cast<T*>(arena.take(p.dim))) {
    __builtin_memset(zeros, 0, static_cast<std::size_t>(p.dim) * sizeof(float));
  }

  // The slot that is packed first from now on.
  void place(int64_t slot) { base = slot; }

  void pack_keys(int64_t slot) const {
    const int64_t count = count_from(slot), parts = ceil_div(count, tile_rows);
    float* to = keys + (slot - base) * words(p.dim);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(count, parts, i);
      const int rows = static_cast<int>(cut(count, parts, i + 1) - first);
      pack_words([&](int j) { return or_zeros(head.key(slot + first + j)); }, rows,
                 to + first * words(p.dim), rows);
    }
    for (int64_t j = 0; j < count; j += per_word) {
      for (int i = 0; i < per_word; ++i) prefetch(slot + piece + j + i);
      const T* from = or_zeros(head.value(slot + j));
      const T* next = in_pairs && j + 1 < count ? or_zeros(head.value(slot + j + 1)) : zeros;
      float* row = values + (slot - base + j) / per_word * p.dim;
      int64_t d = 0;
      for (; d + F::width <= p.dim; d += F::width)
        store(row + d, word(load(from + d), load(next + d)));
      if (d < p.dim) {
        const int left = static_cast<int>(p.dim - d);
        store(row + d, word(load(from + d, left), load(next + d, left)), left);
      }
    }
  }

  // Queries `first` .. `first` + count, whose sums are, or after a fresh start will be, in `state`.
  void enter(float* state, int64_t first, int queries, bool fresh) {
    Arena arena{state};
    q = arena.take(words(p.dim) * tile_queries);
    o = arena.take(p.dim * tile_queries);
    top = arena.take(tile_queries);
    sum = arena.take(tile_queries);
    query = first;
    count = queries;
    if (!fresh) return;
    for (int64_t i = 0; i < words(p.dim) * tile_queries; ++i) q[i] = 0;
    for (int64_t i = 0; i < p.dim * tile_queries; ++i) o[i] = 0;
    for (int i = 0; i < tile_queries; ++i) {
      top[i] = -infinity;
      sum[i] = 0;
    }
    pack_words([&](int i) { return head.query(query + i); }, count, q, tile_queries);
  }

  // The keys in the slots from `slot` on; allowed [queries][keys], rows a block apart, or null.
  void visit(int64_t slot, const bool* allowed) const {
    const int64_t keys_seen = count_from(slot);
    score(slot, keys_seen);
    const bool masked = head.mask || allowed, cut = !head.sees_all(query, slot, keys_seen);
    float unit = p.scale * log2_e;
    // What is hidden must stay so: it is -inf when it is multiplied by the unit.
    if (masked || cut || !(unit > 0)) {
      for (int64_t i = 0; i < keys_seen * tile_queries; i += F::width)
        store(scores + i, load(scores + i) * set1(unit));
      unit = 1;
    }
    if (masked) add_mask(slot, keys_seen, allowed);
    if (cut) hide(slot, keys_seen);
    absorb(slot, keys_seen, unit);
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
  // Piece after piece: words of [dim][keys of a panel] by panels, of [keys][dim].
  float *keys, *values;
  float* scores;  // [keys][queries], and then words of probabilities
  T* zeros;
  // State of the tile: words of queries [dim][queries]; outputs [dim][queries], not yet divided by
  // the sum; the largest score so far, in units of log2 e; the sum of 2^(score - top).
  float *q, *o, *top, *sum;
  int64_t query;
  int count;

  int64_t count_from(int64_t slot) const {
    return head.slots - slot < piece ? head.slots - slot : piece;
  }
  const T* or_zeros(const T* row) const { return row ? row : zeros; }

  // Words of neighbouring rows: of one alone, or of pairs.
  static F word(F one, [[maybe_unused]] F next) {
#ifdef SECATEURS_PAIR_PRODUCTS
    if constexpr (in_pairs) return paired(one, next);
#endif
    return one;
  }

  // Rows of p.dim elements become columns of words.
  template <class From>
  void pack_words(From from, int rows, float* to, int64_t to_stride) const {
    const auto as_it_is = [](F x) { return x; };
#ifdef SECATEURS_PAIR_PRODUCTS
    if constexpr (in_pairs)
      return pack([&](int i) { return PairsOfRow<T>{from(i), p.dim}; }, rows, words(p.dim), to,
                  to_stride, as_it_is);
#endif
    pack(from, rows, p.dim, to, to_stride, as_it_is);
  }

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
  static void product(Panel<Word> panel, int64_t rows, bool packed) {
    static constexpr std::int32_t whole = 0;
    panel.index = &whole;
    panel.blocks = 1;
    panel.w_stride = panel.c_stride = tile_queries;
    const Word* a = panel.a;
    float* c = panel.c;
    const int64_t parts = ceil_div(rows, tile_rows);
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = cut(rows, parts, i), height = cut(rows, parts, i + 1) - first;
      panel.a = a + first * (packed ? panel.depth : 1);
      if (packed) panel.a_stride = height;
      panel.c = c + first * tile_queries;
      panel_for<Word, NV, false>(static_cast<int>(height))(panel);
    }
  }

  void score(int64_t slot, int64_t keys_seen) const {
    Panel<Word> panel{};
    panel.a = reinterpret_cast<const Word*>(keys + (slot - base) * words(p.dim));
    panel.depth = words(p.dim);
    panel.w = reinterpret_cast<const Word*>(q);
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

  static F weight_of(F x) {
#ifdef SECATEURS_PAIR_PRODUCTS
    if constexpr (in_pairs) return exp2_short(x);
#endif
    return exp2(x);
  }

  // Turns scores, times `unit`, into probabilities relative to the largest so far; adds up the
  // weighted values.
  void absorb(int64_t slot, int64_t keys_seen, float unit) const {
    const F factor = set1(unit);
    for (int v = 0; v < NV; ++v) {
      float* s = scores + v * F::width;
      const F before = load(top + v * F::width);
      F most = set1(-infinity);
      for (int64_t j = 0; j < keys_seen; ++j) most = max(load(s + j * tile_queries), most);
      const F now = max(most * factor, before);
      // Where all is hidden so far, any finite number will do.
      const F shift = select(now < set1(-__FLT_MAX__), zero(), zero() - now);
      const F shrink = exp2(before + shift);
      F total = zero();
      const auto weigh = [&](int64_t j) {
        const F weight = weight_of(fma(load(s + j * tile_queries), factor, shift));
        total = total + weight;
        return weight;
      };
      int64_t j = 0;
      for (; j + per_word <= keys_seen; j += per_word) {
        const F one = weigh(j);
        store(s + j / per_word * tile_queries, in_pairs ? word(one, weigh(j + 1)) : one);
      }
      if (j < keys_seen) store(s + j / per_word * tile_queries, word(weigh(j), zero()));
      store(top + v * F::width, now);
      store(sum + v * F::width, fma(load(sum + v * F::width), shrink, total));
      for (int64_t d = 0; d < p.dim; ++d) {
        float* to = o + d * tile_queries + v * F::width;
        store(to, load(to) * shrink);
      }
    }
    Panel<Word> panel{};
    panel.a = reinterpret_cast<const Word*>(values + (slot - base) / per_word * p.dim);
    panel.a_stride = p.dim;
    panel.depth = words(keys_seen);
    panel.w = reinterpret_cast<const Word*>(scores);
    panel.c = o;
    panel.accumulate = true;
    product(panel, p.dim, false);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
