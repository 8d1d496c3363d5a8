// y = act(x W^T + bias) * gate + residual, W block-sparse, float32.
//
// x is packed once into tiles of up to 12 (or 24) rows, input-major. Threads then take items, each
// a group of tiles times a group of block rows that no other item writes:
//
//   for each chunk of inputs      so many that a block row keeps about `resident_inputs` of them:
//   its weights stay in L1,
//     for each block row          the chunk of all tiles of the group in L2
//       for each strip of outputs
//         for each tile           one panel; sums of earlier chunks are read from y and written
//         back,
//                                 the last chunk applies the epilogue while the tile is still in L1
//
// Every output is summed by one thread in the order of its inputs: the result does not depend on
// the number of threads.
#pragma once

#include "cpu/body/arithmetic.h"
#include "cpu/body/math.h"
#include "cpu/body/pack.h"
#include "cpu/body/panel.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t resident_inputs = 256;   // x 32 outputs: 32 KB of weights
constexpr int64_t resident_x = 96 << 10;   // floats of packed x that may stay in L2
constexpr int64_t packed_limit = 4 << 20;  // floats of packed x at a time

template <int NV>
class LinearSolver {
  static constexpr int strip = NV * F::width;
  static constexpr int tile_rows = F::tile_rows(NV);

 public:
  // Rows m0 .. m0 + m of x.
  LinearSolver(const BlockSparseLinear& p, int64_t m0, int64_t m) : p(p), m0(m0), m(m) {
    tiles = ceil_div(m, tile_rows);
    tallest = static_cast<int>(ceil_div(m, tiles));
    panel_tallest = panel_for<NV>(tallest);
    panel_lower = panel_for<NV>(tallest > 1 ? tallest - 1 : 1);
    cuttable = p.bk == p.k;
    has_epilogue = p.bias || p.gate || p.residual || p.activation != Activation::none;

    const int64_t stored = p.rows ? p.indptr[p.rows] : 0;
    const int64_t kept = clamp(stored * p.bk / (p.rows ? p.rows : 1), 1, p.k ? p.k : 1);
    const int64_t grain = cuttable || p.bk == 0 ? 1 : p.bk;
    chunks = clamp(ceil_div(kept, resident_inputs), 1, p.k ? ceil_div(p.k, grain) : 1);
    depth = clamp(ceil_div(ceil_div(p.k, chunks), grain) * grain, grain, p.k ? p.k : 1);
    chunks = p.k ? ceil_div(p.k, depth) : 1;

    threads = m * stored * p.bk * p.bn < serial_limit ? 1 : p.threads;
    tile_groups = ceil_div(tiles, clamp(resident_x / (depth * tile_rows), 1, tiles));
    row_groups = clamp(ceil_div(threads * items_per_thread, tile_groups), 1, p.rows);
    // A single row is its own column.
    if (m > 1) to_pack = scratch(0, static_cast<std::size_t>(m * p.k));
    packed = to_pack ? to_pack : p.x + m0 * p.x_stride;
  }

  void run() {
    const int64_t items = tile_groups * row_groups;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < tiles; ++t)
        if (to_pack) pack_tile(t);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < items; ++i) solve(i / row_groups, i % row_groups);
    }
  }

 private:
  const BlockSparseLinear& p;
  int64_t m0, m, tiles, depth, chunks, tile_groups, row_groups;
  int tallest, threads;  // heights of tiles differ by at most one
  PanelKernel panel_tallest, panel_lower;
  bool cuttable;  // one block spans all inputs: a chunk may end inside it
  bool has_epilogue;
  float* to_pack = nullptr;
  const float* packed;  // tile after tile, [k][rows of the tile]

  int64_t row_of(int64_t tile) const { return cut(m, tiles, tile); }
  int height(int64_t tile) const { return static_cast<int>(row_of(tile + 1) - row_of(tile)); }

  void pack_tile(int64_t t) {
    const float* x = p.x + (m0 + row_of(t)) * p.x_stride;
    pack([&](int i) { return x + i * p.x_stride; }, height(t), p.k, 1, to_pack + row_of(t) * p.k,
         height(t));
  }

  // First block row of a group: groups hold about equally many blocks (a block row costs something
  // of its own).
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
    const int64_t tile0 = cut(tiles, tile_groups, tile_group);
    const int64_t tile1 = cut(tiles, tile_groups, tile_group + 1);
    const int64_t row0 = row_group_begin(row_group);
    const int64_t row1 = row_group + 1 == row_groups ? p.rows : row_group_begin(row_group + 1);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t row = row0; row < row1; ++row)
        for (int64_t j = 0; j < p.bn; j += strip) {
          const int64_t column = row * p.bn + j;
          if (column >= p.n) break;
          const bool last = chunk + 1 == chunks;
          // A strip that runs past n cannot keep its sums in y: it is done as a whole, last.
          const bool spills = column + strip > p.n;
          if (spills && !last) continue;
          const int64_t k0 = spills ? 0 : chunk * depth;
          const int64_t k1 = last ? p.k : (chunk + 1) * depth;
          Panel panel = blocks_of(row, k0, k1);
          if (panel.accumulate && !panel.blocks && !last) continue;
          panel.w += j;
          for (int64_t t = tile0; t < tile1; ++t) solve_tile(panel, t, k0, column, spills, last);
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

  void solve_tile(Panel panel, int64_t t, int64_t k0, int64_t column, bool spills,
                  bool last) const {
    float spill[tile_rows * strip];
    const int rows = height(t);
    const int64_t row = m0 + row_of(t);
    panel.a = packed + row_of(t) * p.k + (cuttable ? k0 * rows : 0);
    panel.a_stride = rows;
    panel.c = spills ? spill : p.y + row * p.n + column;
    panel.c_stride = spills ? strip : p.n;
    (rows == tallest ? panel_tallest : panel_lower)(panel);
    if (last && (spills || has_epilogue)) finish(panel, row, rows, column);
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
void solve_linear(const BlockSparseLinear& p) {
  // The packed copy of x stays within bounds however many rows there are.
  const int64_t parts =
      ceil_div(p.m * p.k, packed_limit) > 1 ? ceil_div(p.m * p.k, packed_limit) : 1;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t m0 = cut(p.m, parts, i);
    LinearSolver<NV>(p, m0, cut(p.m, parts, i + 1) - m0).run();
  }
}

// Blocks of 16, 32 or 64 outputs. y must not overlap any input.
void block_sparse_linear(const BlockSparseLinear& p) {
  if (!p.m || !p.n) return;
  if (p.bn % (2 * F::width) == 0)
    solve_linear<2>(p);
  else
    solve_linear<1>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
