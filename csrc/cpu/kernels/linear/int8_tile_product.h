// How a linear's product of codes runs on the CPU's tiles (AMX): exact sums of a group come out of a
// tile, and are scaled into totals in registers.
//
// The left operand, x, has a sign there, the right one, codes of weights as they are stored, has none.
#pragma once

#include "cpu/kernels/linear/int8_product.h"
#include "cpu/kernels/panel.h"
#include "cpu/problems.h"

#ifdef SECATEURS_TILES

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// As Int8Product, with strips of NT tiles of 16 outputs.
template <class T, int NT>
class Int8TileProduct : public Int8Product<T, NT> {
 public:
  using Int8Product<T, NT>::Int8Product;
  using Int8Product<T, NT>::strip;
  static_assert(strip == NT * 16);
  // As many totals as leave registers for what is added to them.
  static constexpr int tile_rows = 12;

  using Session = Tiles;

  // Tiles 0 and 1 hold sums; 2 x and 3, 4 weights of a whole group; 5, 6 and 7 those of a half.
  Session begin() const {
    TileConfig config;
    constexpr int rows[8] = {12, 12, 12, 16, 16, 12, 8, 8};
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = static_cast<std::uint8_t>(rows[tile]);
      config.row_bytes[tile] = tile == 5 ? 32 : 64;
    }
    return Session(config);
  }

  static int64_t padded(int64_t) { return tile_rows; }

  // x[0 .. rows][0 .. k] to a packed tile, zeros in rows beyond: nobody reads what they give, but
  // whatever lay there could be floats that take long to multiply.
  static void pack_tile(const T* x, int64_t x_stride, int rows, int64_t k, int64_t words,
                        Quad* to) {
    const int64_t size = ceil_div(words, group_words) * group_offset(tile_rows);
    if (rows < tile_rows) __builtin_memset(to, 0, static_cast<std::size_t>(size) * sizeof(Quad));
    pack_codes(x, x_stride, rows, tile_rows, k, words, to);
  }

  // The panel of a tile.
  static void multiply(const Panel<Quad>& p, int, bool) {
    alignas(64) std::int32_t sums[tile_rows][strip];
    F total[tile_rows][NT];
  #pragma GCC unroll 12
    for (int i = 0; i < tile_rows; ++i)
  #pragma GCC unroll 2
      for (int j = 0; j < NT; ++j)
        total[i][j] = p.accumulate ? load(p.c + i * p.c_stride + j * 16) : zero();

    const Quad *w = p.w, *ahead = p.ahead, *ahead_end = ahead + p.ahead_words;
    const int64_t w_bytes = p.w_stride * 4;
    MetGroups met(p);
    while (met.next()) {
      const Quad* group = met.in_tile(tile_rows);
      const GroupOfRow* about = about_rows(group, tile_rows);
      tile_zero<0>();
      if constexpr (NT > 1) tile_zero<1>();
      if (met.both)
        products<2, 3, 4>(group, w, w_bytes);
      else
        products<5, 6, 7>(group + (met.second ? half_words : 0), w, w_bytes);
      w += (met.both ? group_words : half_words) * p.w_stride;
      tile_store<0>(sums, sizeof sums[0]);
      if constexpr (NT > 1) tile_store<1>(&sums[0][16], sizeof sums[0]);
      // A few lines at a time, as in TileProduct.
      for (int line = 0; line < 4 && ahead < ahead_end; ++line, ahead += 16)
        __builtin_prefetch(ahead, 0, 2);

      const int start_of = met.both ? 2 : met.second;
  #pragma GCC unroll 12
      for (int i = 0; i < tile_rows; ++i) {
        const I start = whole(about[i].start[start_of]);
        const F scale = set1(about[i].scale);
  #pragma GCC unroll 2
        for (int j = 0; j < NT; ++j)
          total[i][j] = fma(to_float(load(&sums[i][16 * j]) + start), scale, total[i][j]);
      }
    }

  #pragma GCC unroll 12
    for (int i = 0; i < tile_rows; ++i)
  #pragma GCC unroll 2
      for (int j = 0; j < NT; ++j) store(p.c + i * p.c_stride + j * 16, total[i][j]);
  }

 private:
  // Adds to the sums the products of x in tile A and weights in tiles B0 and B1.
  template <int A, int B0, int B1>
  static void products(const Quad* x, const Quad* w, int64_t w_bytes) {
    tile_load<A>(x, group_words * sizeof(Quad));
    tile_load<B0>(w, w_bytes);
    tile_dot_codes<0, A, B0>();
    if constexpr (NT > 1) {
      tile_load<B1>(w + 16, w_bytes);
      tile_dot_codes<1, A, B1>();
    }
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA

#endif
