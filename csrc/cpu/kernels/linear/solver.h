// How a linear whose weight is stored in blocks is shared out, whatever its product is.
//
// Rows of x are packed into tiles in the layout of the product (see *_product.h). They are read in
// place where the product can do that, and would not repeat it too often.
// Threads take items, each a group of tiles times a group of block rows, which nobody else writes:
//
//   for each strip of outputs     the tiles of the group are in L2
//     for each chunk of inputs    of which the strip keeps at most `resident_inputs`
//       for each tile             one panel; after the last chunk the epilogue
//
// With many rows an item packs its own tiles; with few, items share out the block rows and read one
// packed copy of x.
//
// Every output is summed by one thread in the order of its inputs: the result does not depend on the
// number of threads.
#pragma once

#include "cpu/cache.h"
#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/epilogue.h"
#include "cpu/kernels/panel.h"
#include "cpu/kernels/share.h"
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t least_tiles = 4;         // fewer in a group do not repay streaming the weights
constexpr int64_t packed_limit = 4 << 20;  // words of x in one pass

template <class Product>
class LinearSolver {
  using T = typename Product::Element;
  using Problem = typename Product::Problem;
  using Word = typename Product::Word;
  static constexpr int strip = Product::strip;
  static constexpr int per_word = Product::inputs_in_word;

 public:
  // Rows m0 .. m0 + m of x.
  LinearSolver(const Problem& p, int64_t m0, int64_t m) : p(p), product(p), m0(m0), m(m) {
    tiles = ceil_div(m, Product::tile_rows);
    lower = Product::even_tiles ? m / tiles : Product::tile_rows;
    taller = Product::even_tiles ? m % tiles : 0;
    block_words = ceil_div(p.bk, per_word);
    words = block_words ? ceil_div(p.k, p.bk) * block_words : 0;
    tile_words = Product::offset(Product::padded(height(0)), filled(words));
    cuttable = p.bk >= p.k;
    has_epilogue = has_scales<Problem> || p.bias || p.multiplier || p.residual ||
                   p.activation != Activation::none;

    const int64_t rows = p.rows ? p.rows : 1, stored = p.indptr[p.rows];
    const int64_t grain = cuttable || !block_words ? 16 : filled(block_words);
    const int64_t kept = clamp(stored * p.bk / rows, 1, p.k ? p.k : 1);
    chunks = ceil_div(kept, Product::resident_inputs);
    depth = ceil_div(ceil_div(words, chunks), grain) * grain;
    chunks = depth ? ceil_div(words, depth) : 1;

    threads = m * stored * p.bk * p.bn < serial_limit ? 1 : p.threads;
    const int64_t tile_bytes = clamp(tile_words * int64_t{sizeof(Word)}, 1, l2_bytes());
    const int64_t resident_tiles = clamp(l2_bytes() / 3 / tile_bytes, 1, tiles);
    const int64_t items = threads * Product::items_per_thread;
    shared = tiles < items * least_tiles;
    tile_groups = ceil_div(tiles, resident_tiles);
    if (!shared && tile_groups < items) tile_groups = items;
    if (!shared) tile_groups = clamp(ceil_div(tile_groups, threads) * threads, 1, tiles);
    row_groups = shared ? clamp(ceil_div(items, tile_groups), 1, rows) : 1;
    // Reading x as it lies costs a little more each time than reading a packed copy.
    const bool read_often = !shared && stored * block_words >= 64 * words;
    packed_from = 0;
    if (words * per_word == p.k && Product::reads_x(p) && !read_often)
      packed_from = tiles - (height(tiles - 1) % Product::whole_rows != 0);
    if (shared && packed_from < tiles) shared_x = words_at(0, (tiles - packed_from) * tile_words);
  }

  void run() {
    SharedItems items(tile_groups * row_groups, threads);
    in_parallel(threads, [&] {
      [[maybe_unused]] const auto session = product.begin();
      if (shared_x) {
#pragma omp for schedule(static)
        for (int64_t t = packed_from; t < tiles; ++t)
          pack_tile(t, shared_x + (t - packed_from) * tile_words);
      }
      items.visit([&](int64_t i) { solve(i / row_groups, i % row_groups); });
    });
  }

 private:
  const Problem& p;
  const Product product;
  int64_t m0, m, tiles, lower, taller, block_words, words, tile_words, depth, chunks, tile_groups,
      row_groups;
  int threads;
  bool cuttable;  // one block spans all inputs: a chunk may end inside it
  bool has_epilogue;
  bool shared;          // few rows: all threads read one packed copy of x
  int64_t packed_from;  // tiles before it are read from x itself
  Word* shared_x = nullptr;

  // The tiles and the block rows of an item.
  struct Item {
    int64_t tile0, tile1, row0, row1;
    int64_t packed_from;  // the first of its tiles that is packed
    const Word* packed;
    float* sums;  // [padded rows][strip] for each tile, or for one where sums need not wait
  };

  static Word* words_at(int slot, int64_t count) {
    static_assert(sizeof(Word) == sizeof(float));
    return reinterpret_cast<Word*>(scratch(slot, static_cast<std::size_t>(count)));
  }

  // Words, filled up to those that are packed together.
  static int64_t filled(int64_t words) {
    return ceil_div(words, Product::group_words) * Product::group_words;
  }

  // Either even tiles, of which the first `taller` have one row more than the others, or full ones
  // and what is left.
  int64_t row_of(int64_t tile) const { return tile * lower + (tile < taller ? tile : taller); }
  int height(int64_t tile) const {
    return static_cast<int>(clamp(m - row_of(tile), 0, lower + (tile < taller)));
  }

  void pack_tile(int64_t t, Word* to) const {
    const T* x = p.x + (m0 + row_of(t)) * p.x_stride;
    product.pack_tile(x, p.x_stride, height(t), p.k, words, to);
  }

  // First block row of a group. Groups hold about equally many blocks; a row costs something too.
  int64_t row_group_begin(int64_t group) const {
    const auto cost = [&](int64_t row) { return p.indptr[row] * p.bk + 32 * row; };
    const int64_t target = cut(cost(p.rows), row_groups, group);
    int64_t lo = 0, hi = p.rows;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (cost(mid) < target)
        lo = mid + 1;
      else
        hi = mid;
    }
    return lo;
  }

  void solve(int64_t tile_group, int64_t row_group) const {
    Item item;
    item.tile0 = cut(tiles, tile_groups, tile_group);
    item.tile1 = cut(tiles, tile_groups, tile_group + 1);
    item.row0 = row_group_begin(row_group);
    item.row1 = row_group + 1 == row_groups ? p.rows : row_group_begin(row_group + 1);
    const int64_t count = item.tile1 - item.tile0;
    item.packed_from = clamp(packed_from, item.tile0, item.tile1);
    const int64_t own = shared ? 0 : item.tile1 - item.packed_from;
    const int64_t sums = Product::padded(height(0)) * strip * (chunks > 1 ? count : 1);
    item.sums = scratch(1, static_cast<std::size_t>(sums + own * tile_words));
    Word* packed = reinterpret_cast<Word*>(item.sums + sums);
    for (int64_t t = 0; t < own; ++t) pack_tile(item.packed_from + t, packed + t * tile_words);
    item.packed = shared ? shared_x + (item.packed_from - packed_from) * tile_words : packed;
    for (int64_t row = item.row0; row < item.row1; ++row)
      for (int64_t j = 0; j < p.bn && row * p.bn + j < p.n; j += strip) solve_strip(item, row, j);
  }

  // Outputs row * bn + j on, `strip` of them.
  void solve_strip(const Item& item, int64_t row, int64_t j) const {
    const int64_t column = row * p.bn + j;
    const bool in_y = Product::sums_in_y && column + strip <= p.n;
    const int64_t size = Product::padded(height(0)) * strip;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t w0 = chunk * depth, w1 = words - w0 < depth ? words : w0 + depth;
      const bool last = chunk + 1 == chunks;
      Panel<Word> panel = blocks_of(row, w0, w1);
      if (panel.accumulate && !panel.blocks && !last) continue;
      // Prefetches the weights of the next strip or chunk; each tile of the group fetches a share.
      const int64_t stored = panel.blocks * panel.depth * p.bn;
      panel.ahead = panel.w + stored;
      panel.ahead_words = ceil_div(stored, item.tile1 - item.tile0);
      panel.w += j;
      for (int64_t t = item.tile0; t < item.tile1; ++t) {
        const int rows = height(t);
        const int64_t i = m0 + row_of(t);
        if (t < item.packed_from) {
          panel.a = reinterpret_cast<const Word*>(p.x + i * p.x_stride);
          panel.a_stride = 1;
          panel.a_row = p.x_stride / per_word;
        } else {
          panel.a = item.packed + (t - item.packed_from) * tile_words;
          panel.a_stride = Product::padded(rows);
          panel.a_row = product.packed_row();
        }
        if (cuttable) panel.a += Product::offset(panel.a_stride, w0);
        panel.c = in_y ? reinterpret_cast<float*>(p.y + i * p.n + column)
                       : item.sums + (chunks > 1 ? t - item.tile0 : 0) * size;
        panel.c_stride = in_y ? p.n : strip;
        product.multiply(panel, rows, t == item.tile0);
        panel.ahead += panel.ahead_words;
        if (last && (!in_y || has_epilogue))
          finish(p, panel.c, panel.c_stride, {i, column, rows, clamp(p.n - column, 0, strip)});
      }
    }
  }

  // The part of a block row that meets words w0 .. w1; a and c are left to the tile.
  Panel<Word> blocks_of(int64_t row, int64_t w0, int64_t w1) const {
    static constexpr std::int32_t none = 0;
    Panel<Word> panel{};
    panel.w_stride = p.bn;
    panel.accumulate = w0 > 0;
    const Word* values = reinterpret_cast<const Word*>(p.values);
    const int64_t begin = p.indptr[row], end = p.indptr[row + 1];
    if (cuttable) {
      panel.index = &none;
      panel.blocks = end - begin;
      panel.depth = w1 - w0;
      panel.w = values + (begin * block_words + w0) * p.bn;
    } else {
      const int64_t from = lower_bound(begin, end, w0 / block_words);
      panel.index = p.indices + from;
      panel.blocks = lower_bound(from, end, w1 / block_words) - from;
      panel.depth = block_words;
      panel.w = values + from * block_words * p.bn;
    }
    return panel;
  }

  // The first block among begin .. end whose block column is at least `column`.
  int64_t lower_bound(int64_t begin, int64_t end, int64_t column) const {
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (p.indices[middle] < column)
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  }
};

template <class Product>
void solve_linear(const typename Product::Problem& p) {
  // Few enough rows at a time to bound the packed copy.
  const int64_t words = p.m * p.k / Product::inputs_in_word;
  const int64_t parts = words > packed_limit ? ceil_div(words, packed_limit) : 1;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t m0 = cut(p.m, parts, i);
    LinearSolver<Product>(p, m0, cut(p.m, parts, i + 1) - m0).run();
  }
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
