// AVX-512 with bfloat16, and eight tiles of up to 16 rows by 64 bytes (AMX).
#pragma once

#include "cpu/vectors/avx512.h"

#define SECATEURS_TILES

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

inline I load(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }

// Shapes of the tiles, as the CPU reads them.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

#ifndef SECATEURS_EMULATED_TILES

// Tiles have shapes, and the thread that set them, until this is gone. All tiles begin as zeros.
class Tiles {
 public:
  explicit Tiles(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
};

// Instructions name tiles by number; rows lie `stride` bytes apart in memory.
template <int tile>
inline void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
inline void tile_load(const void* from, std::int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(tile)
                   : "memory");
}
template <int tile>
inline void tile_store(void* to, std::int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}
// sum[i][j] += sum over p of a[i][2p] b[p][2j] + a[i][2p + 1] b[p][2j + 1], in float.
template <int sum, int a, int b>
inline void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

// sum[i][j] += sum over p < 4 k of a[i][p] b[p / 4][4 j + p % 4], codes of a with a sign and of b
// without, in whole numbers.
template <int sum, int a, int b>
inline void tile_dot_codes() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

#else

// The same by plain loops, for tests on CPUs without tiles. Whatever the CPU would refuse, traps.
struct EmulatedTiles {
  TileConfig config;
  alignas(64) unsigned char bytes[8][16][64];
};
inline thread_local EmulatedTiles emulated;

class Tiles {
 public:
  explicit Tiles(const TileConfig& config) {
    emulated.config = config;
    __builtin_memset(emulated.bytes, 0, sizeof emulated.bytes);
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { emulated.config = {}; }
};

template <int tile>
inline void tile_zero() {
  if (!emulated.config.rows[tile]) __builtin_trap();
  __builtin_memset(emulated.bytes[tile], 0, sizeof emulated.bytes[tile]);
}
template <int tile>
inline void tile_load(const void* from, std::int64_t stride) {
  tile_zero<tile>();
  for (int i = 0; i < emulated.config.rows[tile]; ++i)
    __builtin_memcpy(emulated.bytes[tile][i], static_cast<const char*>(from) + i * stride,
                     emulated.config.row_bytes[tile]);
}
template <int tile>
inline void tile_store(void* to, std::int64_t stride) {
  if (!emulated.config.rows[tile]) __builtin_trap();
  for (int i = 0; i < emulated.config.rows[tile]; ++i)
    __builtin_memcpy(static_cast<char*>(to) + i * stride, emulated.bytes[tile][i],
                     emulated.config.row_bytes[tile]);
}
// Row i of a tile, its elements of four bytes from j on.
template <class Word>
inline Word emulated_word(int tile, int i, int j) {
  Word word;
  __builtin_memcpy(&word, emulated.bytes[tile][i] + 4 * j, sizeof word);
  return word;
}
inline float widened(bf16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof wide);
  return wide;
}
// Whether tiles have shapes that can be multiplied.
inline void check_shapes(int sum, int a, int b) {
  const TileConfig& c = emulated.config;
  if (!c.rows[sum] || c.rows[a] != c.rows[sum] || c.row_bytes[b] != c.row_bytes[sum] ||
      c.row_bytes[a] != 4 * c.rows[b])
    __builtin_trap();
}
// Replaces each element of four bytes of `sum` by what `next` makes of it, its row and its place.
template <class Word, class Next>
inline void renew(int sum, const Next& next) {
  for (int i = 0; i < emulated.config.rows[sum]; ++i)
    for (int j = 0; j < emulated.config.row_bytes[sum] / 4; ++j) {
      const Word total = next(emulated_word<Word>(sum, i, j), i, j);
      __builtin_memcpy(emulated.bytes[sum][i] + 4 * j, &total, sizeof total);
    }
}
template <int sum, int a, int b>
inline void tile_dot() {
  check_shapes(sum, a, b);
  renew<float>(sum, [](float before, int i, int j) {
    float even = 0, odd = 0;
    for (int p = 0; p < emulated.config.rows[b]; ++p) {
      const auto left = emulated_word<Pair>(a, i, p), right = emulated_word<Pair>(b, p, j);
      even += widened(left.first) * widened(right.first);
      odd += widened(left.second) * widened(right.second);
    }
    return before + (even + odd);
  });
}
template <int sum, int a, int b>
inline void tile_dot_codes() {
  check_shapes(sum, a, b);
  renew<std::int32_t>(sum, [](std::int32_t before, int i, int j) {
    for (int p = 0; p < emulated.config.rows[b]; ++p) {
      const auto left = emulated_word<Quad>(a, i, p), right = emulated_word<Quad>(b, p, j);
      for (int e = 0; e < 4; ++e)
        before += static_cast<std::int8_t>(left.codes[e]) * right.codes[e];
    }
    return before;
  });
}

#endif

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
