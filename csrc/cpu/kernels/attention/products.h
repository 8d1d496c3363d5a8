// Keys and values packed for tiles, and the tile products of attention in small portions.
#pragma once

#include "cpu/kernels/attention/step.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Keys and values of consecutive slots, the first of which is `base`.
class PairedKeys {
 public:
  static int64_t depth(int64_t dim) { return ceil_div(dim, 32) * 32; }
  static int64_t width(int64_t dim) { return ceil_div(dim, 16) * 16; }
  static int64_t floats(int64_t dim) { return (depth(dim) + width(dim)) / 2; }  // of a slot

  PairedKeys(const Head<bf16>& head, int64_t slots, Arena& arena)
      : head(head),
        dim(head.p.dim),
        value_stride(slots * 16),
        keys(reinterpret_cast<bf16*>(arena.take(slots * depth(dim) / 2))),
        values(reinterpret_cast<bf16*>(arena.take(slots * width(dim) / 2))) {}

  int64_t base = 0;

  const bf16* key_tile(int64_t slot, int64_t d) const {
    return keys + (slot - base) * depth(dim) + d * 16;
  }
  const bf16* value_tile(int64_t slot, int64_t d) const {
    return values + d / 16 * value_stride + (slot - base) * 16;
  }

  // 32 slots.
  void pack(int64_t slot) const {
    const bf16 *row[32], *next[32];
    for (int j = 0; j < 32; ++j) {
      row[j] = head.key(slot + j);
      next[j] = head.key(slot + 32 + j);
    }
    for (int64_t d = 0; d < dim; d += 32)
      for (int j = 0; j < 32; j += 16) pack_key_tile(row + j, next + j, d, key_tile(slot + j, d));
    for (int j = 0; j < 32; ++j) {
      row[j] = head.value(slot + j);
      next[j] = head.value(slot + 32 + j);
    }
    for (int64_t d = 0; d < dim; d += 32) pack_values(row, next, slot, d);
  }

  // Which of the dims d .. d + 32 there are.
  __mmask32 dims_from(int64_t d) const {
    return ~std::uint32_t{0} >> (32 - (dim - d < 32 ? dim - d : 32));
  }
  // Loads these dims of a row. Missing dims, or a missing row, are zeros.
  static __m512i elements(const bf16* row, int64_t d, __mmask32 dims) {
    return row ? _mm512_maskz_loadu_epi16(dims, row + d) : _mm512_setzero_si512();
  }

 private:
  const Head<bf16>& head;
  int64_t dim, value_stride;
  bf16* keys;    // [slots / 16][depth / 32] tiles [16 pairs of dims][16 keys][2]
  bf16* values;  // [width / 16] by value_stride: [slots / 2][16 dims][2]

  // Packs a tile of keys and prefetches the rows `next`: rows of a projection are pages apart, and
  // the hardware does not prefetch across pages.
  void pack_key_tile(const bf16* const* row, const bf16* const* next, int64_t d,
                     const bf16* tile) const {
    const __mmask32 dims = dims_from(d);
    F r[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      __builtin_prefetch(next[j] + d);
      r[j] = {_mm512_castsi512_ps(elements(row[j], d, dims))};
    }
    transpose(r);
    float* to = reinterpret_cast<float*>(const_cast<bf16*>(tile));
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store(to + 16 * i, r[i]);
  }

  // Dims d .. d + 32: two tiles, or what there is of them.
  void pack_values(const bf16* const* row, const bf16* const* next, int64_t slot, int64_t d) const {
    const __mmask32 dims = dims_from(d);
    const bool two = dim - d > 16;
    bf16 *low = const_cast<bf16*>(value_tile(slot, d)), *high = low + value_stride;
    // In the order from which unpacking low and high halves leaves dims 0..15 and 16..31.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    for (int j = 0; j < 32; j += 2) {
      __builtin_prefetch(next[j] + d);
      __builtin_prefetch(next[j + 1] + d);
      const __m512i a = _mm512_permutexvar_epi64(order, elements(row[j], d, dims));
      const __m512i b = _mm512_permutexvar_epi64(order, elements(row[j + 1], d, dims));
      _mm512_storeu_si512(low + 16 * j, _mm512_unpacklo_epi16(a, b));
      if (two) _mm512_storeu_si512(high + 16 * j, _mm512_unpackhi_epi16(a, b));
    }
  }
};

// O += P V of one step, then S = Q K^T of another, for 16 QT queries: four products of tiles at a
// time. Sums are in tiles 0 to 3.
template <int QT>
class TileProducts {
 public:
  TileProducts(const PairedKeys& keys, int64_t dim, const AttentionStep& weighed,
               const AttentionStep& coming)
      : keys(keys),
        dim(dim),
        depth(PairedKeys::depth(dim)),
        width(PairedKeys::width(dim)),
        weighed(weighed),
        coming(coming),
        of_values(static_cast<int>(depth / 32) * weighed.groups),
        of_scores(static_cast<int>(depth / 32) * coming.groups) {}

  // Runs the portions that are due after `part` of `parts`.
  void keep_pace(int part, int parts) {
    for (int due = (of_values + of_scores) * part / parts; done < due; ++done) portion();
  }

 private:
  const PairedKeys& keys;
  int64_t dim, depth, width;
  const AttentionStep &weighed, &coming;
  int of_values, of_scores, done = 0;  // portions
  int group = 0;                       // of the step at work
  int64_t d = 0;

  void portion() {
    if (done < of_values) {
      if (dim - d > 16)
        add_values<2>();
      else
        add_values<1>();
      if (++group == weighed.groups) group = 0, d += 32;
      if (done + 1 == of_values) d = 0;
    } else {
      score();
      d += 32;
      if (d >= dim) d = 0, ++group;
    }
  }

  void score() const {
    constexpr int row = 4 * AttentionStep::keys;
    const int64_t slot = coming.group[group].slot;
    if (d == 0) {
      tile_zero<0>();
      tile_zero<1>();
      if constexpr (QT == 2) {
        tile_zero<2>();
        tile_zero<3>();
      }
    }
    const bf16* q = coming.tile.q + d;
    tile_load<4>(q, 2 * depth);
    tile_load<6>(keys.key_tile(slot, d), 64);
    tile_dot<0, 4, 6>();
    tile_load<7>(keys.key_tile(slot + 16, d), 64);
    tile_dot<1, 4, 7>();
    if constexpr (QT == 2) {
      tile_load<5>(q + 16 * depth, 2 * depth);
      tile_dot<2, 5, 6>();
      tile_dot<3, 5, 7>();
    }
    if (d + 32 < dim) return;
    float* s = coming.scores + 32 * group;
    tile_store<0>(s, row);
    tile_store<1>(s + 16, row);
    if constexpr (QT == 2) {
      tile_store<2>(s + 16 * AttentionStep::keys, row);
      tile_store<3>(s + 16 * AttentionStep::keys + 16, row);
    }
  }

  // 16 ND dims of O.
  template <int ND>
  void add_values() const {
    float *o = weighed.tile.o + d, *below = o + 16 * width;
    if (group == 0) {
      tile_load<0>(o, 4 * width);
      if constexpr (ND == 2) tile_load<1>(o + 16, 4 * width);
      if constexpr (QT == 2) tile_load<2>(below, 4 * width);
      if constexpr (QT == 2 && ND == 2) tile_load<3>(below + 16, 4 * width);
    }
    constexpr int row = 4 * AttentionStep::keys;
    const float* weights = weighed.scores + 16 * group;
    const int64_t slot = weighed.group[group].slot;
    tile_load<4>(weights, row);
    tile_load<6>(keys.value_tile(slot, d), 64);
    tile_dot<0, 4, 6>();
    if constexpr (ND == 2) {
      tile_load<7>(keys.value_tile(slot, d + 16), 64);
      tile_dot<1, 4, 7>();
    }
    if constexpr (QT == 2) {
      tile_load<5>(weights + 16 * AttentionStep::keys, row);
      tile_dot<2, 5, 6>();
      if constexpr (ND == 2) tile_dot<3, 5, 7>();
    }
    if (group + 1 < weighed.groups) return;
    tile_store<0>(o, 4 * width);
    if constexpr (ND == 2) tile_store<1>(o + 16, 4 * width);
    if constexpr (QT == 2) tile_store<2>(below, 4 * width);
    if constexpr (QT == 2 && ND == 2) tile_store<3>(below + 16, 4 * width);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
