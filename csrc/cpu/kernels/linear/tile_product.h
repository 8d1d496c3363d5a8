// How a linear's product runs on the CPU's tiles (AMX): 32 rows by 32 outputs of sums in four of
// them, two of x, two of weights.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/panel.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Strips of NT tiles of 16 outputs.
template <int NT>
class TileProduct {
 public:
  using Element = bf16;
  using Problem = BlockSparseLinear<bf16>;
  using Word = Pair;
  static constexpr int inputs_in_word = 2;
  static constexpr int group_words = 1;
  static constexpr int strip = NT * 16;
  static constexpr int tile_rows = 32, whole_rows = 16;
  static constexpr bool even_tiles = false;
  // By 32 outputs: 16 KB of weights stay in L1 while as much of x streams past them from L2.
  static constexpr int64_t resident_inputs = 256;
  static constexpr int64_t items_per_thread = 2;
  static constexpr bool sums_in_y = false;

  using Session = Tiles;

  // For blocks of a multiple of 16 inputs; a product wants 32 at once.
  explicit TileProduct(const BlockSparseLinear<bf16>& p) : depth(p.bk % 32 ? 8 : 16) {}

  Session begin() const {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? 16 : depth);
      config.row_bytes[tile] = static_cast<std::uint16_t>(tile < 4 || tile >= 6 ? 64 : 4 * depth);
    }
    return Session(config);
  }

  // Whether tiles of whole 16 rows may be read from x itself. Rows of whole 2 KB, if many, would
  // displace each other in L1.
  static bool reads_x(const BlockSparseLinear<bf16>& p) {
    return p.x_stride % 2 == 0 && p.x_stride % 1024 != 0;
  }

  int64_t packed_row() const { return depth; }

  static int64_t offset(int64_t stride, int64_t word) { return word * stride; }
  static int64_t padded(int64_t rows) { return ceil_div(rows, 16) * 16; }

  // x[0 .. rows][0 .. k] to a tile [words / depth][padded rows][depth]; rows beyond are left as they
  // are, and only give sums that nobody reads.
  void pack_tile(const bf16* x, int64_t x_stride, int rows, int64_t k, int64_t words,
                 Pair* to) const {
    const int64_t height = padded(rows), inputs = 2 * depth;
    for (int64_t k0 = 0; k0 < 2 * words; k0 += inputs, to += height * depth) {
      const int here = static_cast<int>(clamp(k - k0, 0, inputs));
      for (int i = 0; i < rows; ++i) {
        const bf16* from = x + i * x_stride + k0;
        auto* row = reinterpret_cast<float*>(to + i * depth);
        if (here == 32)
          store(row, load(reinterpret_cast<const float*>(from)));
        else
          copy(from, here, reinterpret_cast<bf16*>(row), static_cast<int>(inputs));
      }
    }
  }

  // The panel of a tile of `rows` rows.
  void multiply(const Panel<Pair>& panel, int rows, bool) const {
    if (rows > 16)
      run<2>(panel);
    else
      run<1>(panel);
  }

 private:
  int64_t depth;  // words in one product

  // `count` elements, then zeros up to `size`.
  static void copy(const bf16* from, int count, bf16* to, int size) {
    for (int i = 0; i < size; ++i) to[i].bits = i < count ? from[i].bits : std::uint16_t{0};
  }

  // MT tiles of rows.
  template <int MT>
  void run(const Panel<Pair>& p) const {
    float* c1 = p.c + 16 * p.c_stride;
    const int64_t c_bytes = p.c_stride * 4;
    if (p.accumulate) {
      tile_load<0>(p.c, c_bytes);
      if constexpr (NT > 1) tile_load<1>(p.c + 16, c_bytes);
      if constexpr (MT > 1) tile_load<2>(c1, c_bytes);
      if constexpr (MT > 1 && NT > 1) tile_load<3>(c1 + 16, c_bytes);
    } else {
      tile_zero<0>();
      if constexpr (NT > 1) tile_zero<1>();
      if constexpr (MT > 1) tile_zero<2>();
      if constexpr (MT > 1 && NT > 1) tile_zero<3>();
    }
    const Pair *w = p.w, *ahead = p.ahead;
    const int64_t a_bytes = p.a_row * 4, w_bytes = p.w_stride * 4;
    const int64_t a_step = depth * p.a_stride, w_step = depth * p.w_stride;
    const Pair* ahead_end = ahead + p.ahead_words;
    for (int64_t b = 0; b < p.blocks; ++b) {
      const Pair* a = p.a + p.index[b] * p.depth * p.a_stride;
      for (int64_t k = 0; k < p.depth; k += depth) {
        tile_load<6>(w, w_bytes);
        tile_load<4>(a, a_bytes);
        tile_dot<0, 4, 6>();
        if constexpr (NT > 1) {
          tile_load<7>(w + 16, w_bytes);
          tile_dot<1, 4, 7>();
        }
        if constexpr (MT > 1) {
          tile_load<5>(a + 16 * p.a_row, a_bytes);
          tile_dot<2, 5, 6>();
          if constexpr (NT > 1) tile_dot<3, 5, 7>();
        }
        // A few lines at a time: what waits for L3 blocks the loads from L2.
        for (int line = 0; line < 4 && ahead < ahead_end; ++line, ahead += 16)
          __builtin_prefetch(ahead, 0, 2);
        a += a_step;
        w += w_step;
      }
    }
    tile_store<0>(p.c, c_bytes);
    if constexpr (NT > 1) tile_store<1>(p.c + 16, c_bytes);
    if constexpr (MT > 1) tile_store<2>(c1, c_bytes);
    if constexpr (MT > 1 && NT > 1) tile_store<3>(c1 + 16, c_bytes);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
