// How a linear is shared out in which `v` neighbouring outputs keep the same inputs, whatever its
// product is.
//
// Rows of x are packed into tiles, input-major, so that picking an input costs an address. Threads
// take items, each some tiles by some groups of outputs, which nobody else writes:
//
//   for each chunk of inputs      the item's weights of the chunk stay in L2
//     for each tile               its inputs of the chunk are in L1 for all groups
//       for each group of outputs its weights are read in order
//
// Chunks are cut in the list of kept inputs: where inputs are kept evenly, those of a chunk lie
// together. Sums stay aside between chunks; after the last one the epilogue follows. Every output is
// summed by one thread in the order of its inputs: the result does not depend on their number.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/epilogue.h"
#include "cpu/kernels/share.h"
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int64_t resident_weights = 1 << 20;  // bytes, of an item and a chunk, in L2
constexpr int64_t item_rows = 256;             // rows of x that use a weight one after the other
constexpr int64_t packed_at_once = 16 << 20;   // bytes of packed x

template <class Product>
class PatternSolver {
  using Problem = typename Product::Problem;
  using Kept = typename Product::Kept;

 public:
  // Rows m0 .. m0 + m of x, and the inputs that groups of outputs keep.
  PatternSolver(const Problem& p, const Kept& kept, int64_t m0, int64_t m)
      : p(p),
        kept(kept),
        m0(m0),
        m(m),
        tiles(ceil_div(m, Product::rows)),
        tallest(static_cast<int>(ceil_div(m, tiles))),
        product(p, tallest) {
    chunks = ceil_div(p.k * tallest, Product::resident_inputs * Product::rows);
    if (chunks < 1) chunks = 1;
    threads = m * kept.stored() * p.v < serial_limit ? 1 : p.threads;
    tile_blocks = clamp(ceil_div(m, item_rows), 1, tiles);
    const int64_t bytes = kept.stored() * p.v * static_cast<int64_t>(sizeof(*p.values)) / chunks;
    group_blocks = clamp(ceil_div(bytes, resident_weights), 1, p.groups);
    while (tile_blocks * group_blocks % threads && group_blocks < p.groups) ++group_blocks;
    packed_tile = Product::packed(tallest, p.k);
    if (!Product::reads_x(m)) packed = scratch(0, static_cast<std::size_t>(tiles * packed_tile));
  }

  void run() const {
    SharedItems items(tile_blocks * group_blocks, threads);
    in_parallel(threads, [&] {
      if (packed) {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; ++t)
          Product::pack_tile(p.x + (m0 + row_of(t)) * p.x_stride, p.x_stride, height(t), p.k,
                             packed + t * packed_tile);
      }
      [[maybe_unused]] typename Product::Session session;
      items.visit([&](int64_t i) { solve(i / group_blocks, i % group_blocks); });
    });
  }

 private:
  const Problem& p;
  const Kept& kept;
  int64_t m0, m, tiles;
  int tallest;
  Product product;
  int64_t chunks, tile_blocks, group_blocks, packed_tile;
  int threads;
  float* packed = nullptr;

  int64_t row_of(int64_t tile) const { return cut(m, tiles, tile); }
  int height(int64_t tile) const { return static_cast<int>(row_of(tile + 1) - row_of(tile)); }

  void solve(int64_t tile_block, int64_t group_block) const {
    const int64_t tile0 = cut(tiles, tile_blocks, tile_block),
                  tile1 = cut(tiles, tile_blocks, tile_block + 1),
                  group0 = cut(p.groups, group_blocks, group_block),
                  group1 = cut(p.groups, group_blocks, group_block + 1);
    const int64_t strips = p.v / Product::outputs;
    const int64_t kept_aside = chunks > 1 ? (tile1 - tile0) * (group1 - group0) * strips : 1;
    float* aside = scratch(1, static_cast<std::size_t>((kept_aside + 1) * Product::sums));
    float* turned = aside + kept_aside * Product::sums;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      float* sums = aside;
      for (int64_t t = tile0; t < tile1; ++t) {
        const float* x = packed ? packed + t * packed_tile
                                : reinterpret_cast<const float*>(p.x + m0 * p.x_stride);
        for (int64_t g = group0; g < group1; ++g) {
          const auto part = kept.part(g, chunk, chunks);
          if (t + 1 < tile1) prefetch_share(t + 1, chunk, g - group0, group1 - group0);
          for (int64_t j = 0; j < p.v; j += Product::outputs) {
            product.multiply(x, height(t), part, j, sums, chunk > 0);
            if (chunk + 1 == chunks)
              finish(p, Product::by_rows(sums, turned), Product::outputs,
                     {m0 + row_of(t), g * p.v + j, height(t), Product::outputs});
            if (chunks > 1) sums += Product::sums;
          }
        }
      }
    }
  }

  // Prefetches one of `shares` equal parts of a tile's chunk into L2. Inputs are picked in an order
  // that the hardware cannot predict.
  void prefetch_share(int64_t tile, int64_t chunk, int64_t share, int64_t shares) const {
    if (!packed) return;
    const int64_t part = chunks * shares, i = chunk * shares + share;
    const float* to = packed + tile * packed_tile + cut(packed_tile, part, i + 1);
    for (const float* at = packed + tile * packed_tile + cut(packed_tile, part, i); at < to;
         at += 64 / sizeof(float))
      __builtin_prefetch(at, 0, 2);
  }
};

template <class Product>
void solve_pattern(const typename Product::Problem& p) {
  const typename Product::Kept kept(p);
  // Few enough rows at a time to bound the packed copy.
  const int64_t bytes = p.m * p.k * static_cast<int64_t>(sizeof(float));
  const int64_t parts = bytes > packed_at_once ? ceil_div(bytes, packed_at_once) : 1;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t m0 = cut(p.m, parts, i), m1 = cut(p.m, parts, i + 1);
    if (m1 > m0) PatternSolver<Product>(p, kept, m0, m1 - m0).run();
  }
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
