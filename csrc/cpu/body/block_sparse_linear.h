// y = act(x W^T + bias) * gate + residual, W block-sparse, float32.
//
// Rows of x are packed into tiles of up to 12 (or 24) rows, input-major. Threads take items, each a
// group of tiles times a group of block rows, which nobody else writes:
//
//   for each chunk of inputs      of which a block row keeps about `resident_inputs`
//     for each block row          the chunk of all tiles of the group is in L2
//       for each strip of outputs
//         for each tile           the chunk's weights are in L1: one panel
//
// Sums of earlier chunks are read from y and written back; after the last chunk the epilogue follows
// while the tile is still in L1. With many rows an item packs its own tiles, chunk by chunk; with
// few, items share out the block rows and read one packed copy of x.
//
// Every output is summed by one thread in the order of its inputs: the result does not depend on the
// number of threads.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/math.h"
#include "cpu/body/pack.h"
#include "cpu/body/panel.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t resident_inputs = 256;   // by 32 outputs: 32 KB of weights
constexpr int64_t resident_x = 96 << 10;   // floats of packed x that stay in L2
constexpr int64_t least_tiles = 4;         // fewer in a group do not repay streaming the weights
constexpr int64_t packed_limit = 4 << 20;  // floats of x in one pass

template <int NV>
class LinearSolver {
  static constexpr int strip = NV * F::width;
  static constexpr int tile_rows = F::tile_rows(NV);

 public:
  // Rows m0 .. m0 + m of x.
  LinearSolver(const BlockSparseLinear<float>& p, int64_t m0, int64_t m) : p(p), m0(m0), m(m) {
    tiles = ceil_div(m, tile_rows);
    tallest = static_cast<int>(ceil_div(m, tiles));
    panel_tallest = panel_for<NV>(tallest);
    panel_lower = panel_for<NV>(tallest > 1 ? tallest - 1 : 1);
    cuttable = p.bk == p.k;
    has_epilogue = p.bias || p.gate || p.residual || p.activation != Activation::none;

    const int64_t k = p.k ? p.k : 1, rows = p.rows ? p.rows : 1;
    const int64_t stored = p.indptr[p.rows];
    const int64_t grain = cuttable || !p.bk ? 1 : p.bk;
    const int64_t kept = clamp(stored * p.bk / rows, 1, k);
    depth = ceil_div(ceil_div(k, ceil_div(kept, resident_inputs)), grain) * grain;
    chunks = ceil_div(k, depth);

    threads = m * stored * p.bk * p.bn < serial_limit ? 1 : p.threads;
    const int64_t resident_tiles = clamp(resident_x / (depth * tile_rows), 1, tiles);
    const int64_t items = threads * items_per_thread;
    shared = tiles < items * least_tiles;
    tile_groups = ceil_div(tiles, resident_tiles);
    if (!shared && tile_groups < items) tile_groups = items;
    if (!shared) tile_groups = clamp(ceil_div(tile_groups, threads) * threads, 1, tiles);
    row_groups = shared ? clamp(ceil_div(items, tile_groups), 1, p.rows) : 1;
    if (shared && m > 1) shared_x = scratch(0, static_cast<std::size_t>(m * p.k));
  }

  void run() {
    const int64_t items = tile_groups * row_groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (shared && m > 1) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; ++t) pack_tile(t, 0, p.k, shared_x + row_of(t) * p.k);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < items; ++i) solve(i / row_groups, i % row_groups);
    }
  }

 private:
  const BlockSparseLinear<float>& p;
  int64_t m0, m, tiles, depth, chunks, tile_groups, row_groups;
  int tallest, threads;  // heights of tiles differ by at most one
  PanelKernel panel_tallest, panel_lower;
  bool cuttable;  // one block spans all inputs: a chunk may end inside it
  bool has_epilogue;
  bool shared;  // few rows: all threads read one packed copy of x
  float* shared_x = nullptr;

  // Inputs k0 .. k0 + depth of the tiles from `row` on: tile after tile, [depth][rows of the tile].
  struct Packed {
    const float* x;
    int64_t k0, depth, row;
  };

  // The tiles and the block rows of an item.
  struct Item {
    int64_t tile0, tile1, row0, row1;
    float* spill;  // [rows of the tiles][strip]
  };

  int64_t row_of(int64_t tile) const { return cut(m, tiles, tile); }
  int height(int64_t tile) const { return static_cast<int>(row_of(tile + 1) - row_of(tile)); }

  void pack_tile(int64_t t, int64_t k0, int64_t depth, float* to) const {
    const float* x = p.x + (m0 + row_of(t)) * p.x_stride + k0;
    pack([&](int i) { return x + i * p.x_stride; }, height(t), depth, 1, to, height(t));
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
    const int64_t first = row_of(item.tile0), rows = row_of(item.tile1) - first;
    item.spill = scratch(1, static_cast<std::size_t>(rows * (strip + (shared ? 0 : depth))));
    float* own = item.spill + rows * strip;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t k0 = chunk * depth, k1 = p.k - k0 < depth ? p.k : k0 + depth;
      Packed packed;
      if (m == 1) {
        packed = {p.x + m0 * p.x_stride, 0, p.k, 0};
      } else if (shared) {
        packed = {shared_x, 0, p.k, 0};
      } else {
        packed = {own, k0, k1 - k0, first};
        for (int64_t t = item.tile0; t < item.tile1; ++t)
          pack_tile(t, k0, k1 - k0, own + (row_of(t) - first) * (k1 - k0));
      }
      for (int64_t row = item.row0; row < item.row1; ++row) solve_row(item, packed, row, k0, k1);
    }
  }

  void solve_row(const Item& item, const Packed& packed, int64_t row, int64_t k0,
                 int64_t k1) const {
    const bool last = k1 == p.k;
    Panel panel = blocks_of(row, k0, k1);
    if (panel.accumulate && !panel.blocks && !last) return;
    for (int64_t j = 0; j < p.bn; j += strip, panel.w += strip) {
      const int64_t column = row * p.bn + j;
      if (column >= p.n) break;
      // A strip that runs past n keeps its sums aside.
      const bool spills = column + strip > p.n;
      for (int64_t t = item.tile0; t < item.tile1; ++t) {
        const int rows = height(t);
        const int64_t i = m0 + row_of(t);
        const int64_t k = (cuttable ? k0 : 0) - packed.k0;
        panel.a = packed.x + (row_of(t) - packed.row) * packed.depth + k * rows;
        panel.a_stride = rows;
        panel.c =
            spills ? item.spill + (row_of(t) - row_of(item.tile0)) * strip : p.y + i * p.n + column;
        panel.c_stride = spills ? strip : p.n;
        (rows == tallest ? panel_tallest : panel_lower)(panel);
        if (last && (spills || has_epilogue)) finish(panel, i, rows, column);
      }
    }
  }

  // The part of a block row that meets inputs k0 .. k1; a and c are left to the tile.
  Panel blocks_of(int64_t row, int64_t k0, int64_t k1) const {
    static constexpr std::int32_t none = 0;
    Panel panel{};
    panel.w_stride = p.bn;
    panel.accumulate = k0 > 0;
    const int64_t begin = p.indptr[row], end = p.indptr[row + 1];
    if (cuttable) {
      panel.index = &none;
      panel.blocks = end - begin;
      panel.depth = k1 - k0;
      panel.w = p.values + (begin * p.bk + k0) * p.bn;
    } else {
      const int64_t from = lower_bound(begin, end, k0 / p.bk);
      panel.index = p.indices + from;
      panel.blocks = lower_bound(from, end, k1 / p.bk) - from;
      panel.depth = p.bk;
      panel.w = p.values + from * p.bk * p.bn;
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

  // What follows the product, on the tile that a panel has just left in L1.
  void finish(const Panel& panel, int64_t row, int rows, int64_t column) const {
    const int64_t width = p.n - column < strip ? p.n - column : strip;
    for (int i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; j += F::width) {
        const int n = static_cast<int>(width - j < F::width ? width - j : F::width);
        const auto read = [n](const float* from) {
          return n == F::width ? load(from) : load(from, n);
        };
        F y = read(panel.c + i * panel.c_stride + j);
        if (p.bias) y = y + read(p.bias + column + j);
        y = activate(p.activation, y);
        if (p.gate) y = y * read(p.gate + (row + i) * p.gate_stride + column + j);
        if (p.residual) y = y + read(p.residual + (row + i) * p.residual_stride + column + j);
        store(p.y + (row + i) * p.n + column + j, y, n);
      }
  }
};

template <int NV>
void solve_linear(const BlockSparseLinear<float>& p) {
  // Few enough rows at a time to bound the packed copy.
  const int64_t parts =
      ceil_div(p.m * p.k, packed_limit) > 1 ? ceil_div(p.m * p.k, packed_limit) : 1;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t m0 = cut(p.m, parts, i);
    LinearSolver<NV>(p, m0, cut(p.m, parts, i + 1) - m0).run();
  }
}

// Blocks of 16, 32 or 64 outputs. y must not overlap any input.
void block_sparse_linear(const BlockSparseLinear<float>& p) {
  if (!p.m || !p.n) return;
  if (p.bn % (2 * F::width) == 0)
    solve_linear<2>(p);
  else
    solve_linear<1>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
