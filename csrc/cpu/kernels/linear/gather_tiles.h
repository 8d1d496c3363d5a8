// The product of pattern_linear on tiles: 32 outputs by 32 rows of x in four tiles of sums.
//
// Weights are the left operand, 16 outputs by 32 of their inputs as stored. The right one wants
// pairs of inputs side by side for 16 rows of x; the inputs of a pair lie anywhere, so pairs are
// interleaved on the way: x is packed with one cache line per input, its 32 rows in the order that
// lets unpacking low and high halves leave rows 0..15 and 16..31.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/kept_inputs.h"
#include "cpu/problems.h"

#ifdef SECATEURS_TILES

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

inline TileConfig full_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  return config;
}

template <int NW>
class GatherByTiles {
 public:
  static constexpr int rows = 32, outputs = 16 * NW, side = 32;
  using Problem = PatternLinear<bf16>;
  using Kept = KeptInputs<bf16, side>;
  struct Session {
    Tiles tiles{full_tiles()};
  };
  static constexpr int64_t sums = rows * outputs;
  static constexpr int64_t resident_inputs = 1024;  // 64 KB of a tile of x, in L2

  GatherByTiles(const Problem&, int tallest) : wide(tallest > 16) {}

  static bool reads_x(int64_t) { return false; }

  static int64_t packed(int, int64_t k) { return k * 16; }

  static void pack_tile(const bf16* x, int64_t stride, int height, int64_t k, float* to) {
    for (int64_t k0 = 0; k0 < k; k0 += 16) {
      const int width = k - k0 < 16 ? static_cast<int>(k - k0) : 16;
      F half[2][16];
      for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < 16; ++i)
          half[h][i] = 16 * h + i < height ? load(x + (16 * h + i) * stride + k0, width) : zero();
        transpose(half[h]);
      }
      for (int i = 0; i < width; ++i) {
        const auto word = [](F v) { return _mm512_srli_epi32(_mm512_castps_si512(v.v), 16); };
        _mm512_store_si512(to + (k0 + i) * 16,
                           _mm512_packus_epi32(word(half[0][i]), word(half[1][i])));
      }
    }
  }

  void multiply(const float* x, int, const KeptPart<bf16>& part, int64_t output, float* to,
                bool accumulate) const {
    (wide ? &product<2> : &product<1>)(x, part.columns, part.count, part.w + output * side,
                                       part.w_outputs, to, accumulate);
  }

  // Sums are tiles [NW][2][16 outputs][16 rows of x].
  static const float* by_rows(const float* from, float* to) {
    for (int w = 0; w < NW; ++w)
      for (int h = 0; h < 2; ++h, from += 256) {
        F tile[16];
  #pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) tile[i] = load(from + 16 * i);
        transpose(tile);
  #pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) store(to + (16 * h + i) * outputs + 16 * w, tile[i]);
      }
    return to;
  }

 private:
  bool wide;

  // The right operand of one step: [NX][16 pairs][16 rows of x][2].
  template <int NX>
  static void gather(const float* x, const std::int32_t* columns, int64_t count, bf16* to) {
    const auto pair = [&](int i, __m512i a, __m512i b) {
      _mm512_store_si512(to + 32 * i, _mm512_unpacklo_epi16(a, b));
      if (NX == 2) _mm512_store_si512(to + 512 + 32 * i, _mm512_unpackhi_epi16(a, b));
    };
    const auto line = [&](int i) {
      return _mm512_load_si512(x + static_cast<int64_t>(columns[i]) * 16);
    };
    if (count >= 32)
  #pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) pair(i, line(2 * i), line(2 * i + 1));
    else
      for (int i = 0; i < 16; ++i)
        pair(i, 2 * i < count ? line(2 * i) : _mm512_setzero_si512(),
             2 * i + 1 < count ? line(2 * i + 1) : _mm512_setzero_si512());
  }

  // Tiles 0..3 hold sums, 4 and 5 weights, 6 and 7 rows of x.
  template <int NX>
  static void product(const float* x, const std::int32_t* columns, int64_t count, const bf16* w,
                      int64_t w_outputs, float* to, bool accumulate) {
    alignas(64) bf16 gathered[2][NX * 512];
    if (accumulate) {
      tile_load<0>(to, 64);
      if (NX == 2) tile_load<1>(to + 256, 64);
      if (NW == 2) tile_load<2>(to + 512, 64);
      if (NW == 2 && NX == 2) tile_load<3>(to + 768, 64);
    } else {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
    }
    if (count > 0) gather<NX>(x, columns, count, gathered[0]);
    int buffer = 0;
    for (int64_t at = 0; at < count; at += side, buffer ^= 1, w += w_outputs * side) {
      // One step ahead: what has just been stored cannot be loaded as a tile at once.
      if (at + side < count)
        gather<NX>(x, columns + at + side, count - at - side, gathered[buffer ^ 1]);
      tile_load<6>(gathered[buffer], 64);
      tile_load<4>(w, 64);
      tile_dot<0, 4, 6>();
      if (NX == 2) {
        tile_load<7>(gathered[buffer] + 512, 64);
        tile_dot<1, 4, 7>();
      }
      if (NW == 2) {
        tile_load<5>(w + 16 * side, 64);
        tile_dot<2, 5, 6>();
        if (NX == 2) tile_dot<3, 5, 7>();
      }
    }
    tile_store<0>(to, 64);
    if (NX == 2) tile_store<1>(to + 256, 64);
    if (NW == 2) tile_store<2>(to + 512, 64);
    if (NW == 2 && NX == 2) tile_store<3>(to + 768, 64);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA

#endif
