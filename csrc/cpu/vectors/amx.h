// AVX-512 with bfloat16, and eight tiles of up to 16 rows by 64 bytes (AMX).
#pragma once

#include "cpu/vectors/avx512.h"

#define SECATEURS_TILES

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Shapes of the tiles, as the CPU reads them.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

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

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
