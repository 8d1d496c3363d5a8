// Pieces of keys by AMX tiles: bfloat16 products, everything else in float.
//
//   S = Q K^T      rows of Q as they are, K^T in pairs of dims
//   P = 2^(S - m)  row by row, in place, rounded to bfloat16; scores are in units of log2 e
//   O += P V       V in pairs of keys
//
// Pieces are collected into steps of up to four groups of 32 keys, so that maxima, rescaling and
// sums of O are paid once in 128 keys. Steps go through three stages, one behind the other, so that
// tiles and vectors work at the same time:
//
//   step j      S    by tiles, a few products after each row of weights
//   step j - 1  P    by vectors
//   step j - 2  O    by tiles, before S, whose scores take the place of these weights
#pragma once

#include "cpu/kernels/attention/head.h"
#include "cpu/kernels/attention/products.h"
#include "cpu/kernels/attention/step.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// 16 QT queries at a time.
template <int QT>
class TileAttention {
 public:
  using Element = bf16;
  // Of a thread: the shapes of its tiles, and the weights it may take for zero.
  struct Session {
    Tiles tiles{config()};
    FlushToZero weights;

    Session() {}

    static TileConfig config() {
      TileConfig c;
      for (int i = 0; i < 8; ++i) {
        c.row_bytes[i] = 64;
        c.rows[i] = 16;
      }
      return c;
    }
  };
  static constexpr int tile_queries = 16 * QT;
  static constexpr int live_tiles = 3;  // steps of as many are under way
  static constexpr int64_t longest_piece = 32;
  static constexpr int64_t least_packed = 32;

  static int64_t key_floats(int64_t dim) { return PairedKeys::floats(dim); }
  static int64_t tile_floats(int64_t dim) {
    return tile_queries * (PairedKeys::depth(dim) / 2 + PairedKeys::width(dim) + 17) + 64;
  }
  static int64_t work_floats(int64_t dim, int64_t resident) {
    return (resident + 64) * key_floats(dim) + 2 * tile_queries * (AttentionStep::keys + 1) + 64;
  }

  TileAttention(const Head<bf16>& head, int64_t piece, int64_t resident, Arena& arena)
      : p(head.p),
        head(head),
        piece(piece),
        depth(PairedKeys::depth(p.dim)),
        width(PairedKeys::width(p.dim)),
        keys(head, resident + 64, arena) {
    coming.scores = arena.take(tile_queries * AttentionStep::keys);
    coming.fade = arena.take(tile_queries);
    scored.scores = arena.take(tile_queries * AttentionStep::keys);
    scored.fade = arena.take(tile_queries);
  }

  // The slot that is packed first from now on.
  void place(int64_t slot) { keys.base = slot; }

  void pack_keys(int64_t slot) const { keys.pack(slot); }

  // Queries `query` .. `query` + count, whose sums are, or after a fresh start will be, in `state`.
  void enter(float* state, int64_t query, int count, bool fresh) {
    Arena arena{state};
    TileSums tile;
    tile.query = query;
    tile.count = count;
    tile.q = reinterpret_cast<bf16*>(arena.take(tile_queries * depth / 2));
    tile.o = arena.take(tile_queries * width);
    tile.top = arena.take(tile_queries);
    tile.sum = arena.take(tile_queries * 16);
    coming.tile = tile;
    steps = 0;
    if (!fresh) return;
    copy_queries(tile);
    for (float* to = tile.o; to < tile.top; to += 16) store(to, zero());
    for (int i = 0; i < tile_queries; ++i) {
      tile.top[i] = -infinity;
      store(tile.sum + 16 * i, zero());
    }
  }

  // The keys in the slots from `slot` on; allowed [queries][keys], rows a block apart, or null.
  void visit(int64_t slot, const bool* allowed) {
    const bool two = piece > 16;
    if (!two && coming.groups) {
      KeyGroup& before = coming.group[coming.groups - 1];
      if (!before.full && before.slot + 16 == slot) {
        before.full = true;
        before.allowed[1] = allowed;
        return;
      }
    }
    if (coming.groups == AttentionStep::most_groups) advance();
    coming.group[coming.groups++] = {slot, {allowed, two && allowed ? allowed + 16 : nullptr}, two};
  }

  void leave(bool last) {
    if (coming.groups) advance();
    if (!last) return;
    if (steps)
      scored.last = true;
    else
      write(coming.tile);
  }

  // Completes the sums of all queries so far.
  void drain() {
    while (scored.groups || weighed.groups) advance();
  }

 private:
  const Attention<bf16>& p;
  const Head<bf16>& head;
  int64_t piece, depth, width;
  PairedKeys keys;
  AttentionStep coming, scored, weighed;  // weighed and coming have one place for scores
  int steps = 0;                          // of the tile, among the slots now packed

  // A negative scale changes the sign of q, so that the largest product is the largest score.
  void copy_queries(const TileSums& tile) const {
    const auto sign = _mm512_set1_epi16(static_cast<short>(p.scale < 0 ? 0x8000 : 0));
    const int64_t stride = p.q_stride.row, ahead = tile_queries * stride;
    const bf16* first = head.query(tile.query);
    for (int64_t d = 0; d < p.dim; d += 32) {
      const __mmask32 dims = keys.dims_from(d);
      bf16* to = tile.q + d;
      for (int i = 0; i < tile_queries; ++i, to += depth) {
        const bf16* row = i < tile.count ? first + i * stride : nullptr;
        if (row) __builtin_prefetch(row + d + ahead);
        const auto x = keys.elements(row, d, dims);
        _mm512_storeu_si512(to, row ? _mm512_xor_si512(x, sign) : x);
      }
    }
  }

  // Every step goes one stage further.
  void advance() {
    weighed.scores = coming.scores;
    weighed.fade = coming.fade;
    if (weighed.groups && weighed.fades) rescale(weighed);
    TileProducts<QT> products(keys, p.dim, weighed, coming);
    const int rows = scored.tile.count;
    if (scored.groups)
      scored.fades =
          StepWeights(head, scored).weigh([&](int i) { products.keep_pace(i + 1, rows); });
    products.keep_pace(1, 1);
    if (weighed.groups && weighed.last) write(weighed.tile);

    steps += coming.groups > 0;
    weighed = scored;
    scored = coming;
    scored.last = false;
    coming.groups = 0;
    coming.scores = weighed.scores;
    coming.fade = weighed.fade;
  }

  void rescale(const AttentionStep& step) const {
    for (int i = 0; i < step.tile.count; ++i) {
      const F factor = set1(step.fade[i]);
      float* row = step.tile.o + i * width;
      for (int64_t d = 0; d < p.dim; d += 16) store(row + d, load(row + d) * factor);
    }
  }

  void write(const TileSums& tile) const {
    for (int i = 0; i < tile.count; ++i) {
      const float sum = _mm512_reduce_add_ps(load(tile.sum + 16 * i).v);
      // The largest score alone contributes 1; only where no key was seen is the sum 0.
      const F inverse = set1(1 / (sum < 1e-30f ? 1e-30f : sum));
      const float* from = tile.o + i * width;
      bf16* to = head.output(tile.query + i);
      for (int64_t d = 0; d < p.dim; d += 16) {
        const F y = load(from + d) * inverse;
        if (p.dim - d < 16)
          store(to + d, y, static_cast<int>(p.dim - d));
        else
          store(to + d, y);
      }
    }
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
