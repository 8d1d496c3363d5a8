// y = act(x W^T + bias) * multiplier + residual, where `v` neighbouring outputs keep the same inputs.
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
#include "cpu/kernels/linear/gather_panel.h"
#include "cpu/kernels/linear/gather_tiles.h"
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
  using T = typename Product::Element;
  static constexpr int side = Product::side;

 public:
  // Rows m0 .. m0 + m of x. `first_step` says where a group's weights begin, in steps of `side`
  // inputs; null where all groups keep equally many.
  PatternSolver(const PatternLinear<T>& p, const std::int32_t* first_step, int64_t m0, int64_t m)
      : p(p),
        first_step(first_step),
        m0(m0),
        m(m),
        tiles(ceil_div(m, Product::rows)),
        tallest(static_cast<int>(ceil_div(m, tiles))),
        product(tallest) {
    const int64_t stored = p.indptr ? p.indptr[p.groups] : p.groups * p.kept;
    chunks = ceil_div(p.k * tallest, Product::resident_inputs * Product::rows);
    if (chunks < 1) chunks = 1;
    threads = m * stored * p.v < serial_limit ? 1 : p.threads;
    tile_blocks = clamp(ceil_div(m, item_rows), 1, tiles);
    const int64_t bytes = stored * p.v * static_cast<int64_t>(sizeof(T)) / chunks;
    group_blocks = clamp(ceil_div(bytes, resident_weights), 1, p.groups);
    while (tile_blocks * group_blocks % threads && group_blocks < p.groups) ++group_blocks;
    packed_tile = Product::packed(tallest, p.k);
    // One row of float32 is its own packed form.
    if (m > 1 || sizeof(T) != sizeof(float))
      packed = scratch(0, static_cast<std::size_t>(tiles * packed_tile));
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
  const PatternLinear<T>& p;
  const std::int32_t* first_step;
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
          const Steps part = steps_of(g, chunk);
          if (t + 1 < tile1) prefetch_share(t + 1, chunk, g - group0, group1 - group0);
          for (int64_t j = 0; j < p.v; j += Product::outputs) {
            product.multiply(x, height(t), part.columns, part.count, part.w + j * side, p.v, sums,
                             chunk > 0);
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

  // The inputs of a chunk that a group keeps.
  struct Steps {
    const std::int32_t* columns;
    int64_t count;
    const T* w;
  };

  Steps steps_of(int64_t g, int64_t chunk) const {
    const int64_t begin = p.indptr ? p.indptr[g] : g * p.kept;
    const int64_t kept = p.indptr ? p.indptr[g + 1] - begin : p.kept, steps = ceil_div(kept, side);
    const int64_t from = cut(steps, chunks, chunk), to = cut(steps, chunks, chunk + 1);
    const int64_t first = first_step ? first_step[g] : g * steps;
    return {p.columns + begin + from * side, (to * side < kept ? to * side : kept) - from * side,
            p.values + (first + from) * p.v * side};
  }
};

template <class Product>
void solve_pattern(const PatternLinear<typename Product::Element>& p) {
  std::int32_t* first_step = nullptr;
  if (p.indptr) {
    first_step =
        reinterpret_cast<std::int32_t*>(scratch(2, static_cast<std::size_t>(p.groups + 1)));
    first_step[0] = 0;
    for (int64_t g = 0; g < p.groups; ++g)
      first_step[g + 1] = first_step[g] + static_cast<std::int32_t>(ceil_div(
                                              p.indptr[g + 1] - p.indptr[g], Product::side));
  }
  // Few enough rows at a time to bound the packed copy.
  const int64_t bytes = p.m * p.k * static_cast<int64_t>(sizeof(float));
  const int64_t parts = bytes > packed_at_once ? ceil_div(bytes, packed_at_once) : 1;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t m0 = cut(p.m, parts, i), m1 = cut(p.m, parts, i + 1);
    if (m1 > m0) PatternSolver<Product>(p, first_step, m0, m1 - m0).run();
  }
}

// Groups of a multiple of 16 outputs. y must not overlap any input.
template <class T>
void pattern_linear(const PatternLinear<T>& p) {
  if (!p.m || !p.groups) return;
#ifdef SECATEURS_TILES
  if constexpr (sizeof(T) == sizeof(bf16)) {
    if (p.v % 32 == 0)
      solve_pattern<GatherByTiles<2>>(p);
    else
      solve_pattern<GatherByTiles<1>>(p);
    return;
  }
#endif
  if (p.v % (2 * F::width) == 0)
    solve_pattern<GatherByVectors<T, 2>>(p);
  else
    solve_pattern<GatherByVectors<T, 1>>(p);
}

// How many inputs of an output lie side by side in weights of bfloat16.
#ifdef SECATEURS_TILES
constexpr int bf16_together = 32;
#else
constexpr int bf16_together = together<bf16>;
#endif

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
