// How a linear's product of codes runs on vectors: groups of a row of x rounded to codes, exact sums
// of a group in registers.
//
// Codes of weights are stored without sign, as 128 + w: that is the operand which vpdpbusd takes so,
// and lets x, with sign, be repeated from memory. What 128 adds to a sum, the sum starts below.
#pragma once

#include "cpu/kernels/linear/quantise.h"
#include "cpu/kernels/panel.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int half_words = group_words / 2;  // of what the smallest block has

// Of a row's group of inputs, beside its codes.
struct GroupOfRow {
  float scale;
  std::int32_t start[3];  // of sums over the first half, the second, both
};
constexpr int about_words = sizeof(GroupOfRow) / sizeof(Quad);

// A packed tile: group by group, [rows][codes of a group], then [rows] of what is beside them.
inline int64_t group_offset(int64_t rows) { return rows * (group_words + about_words); }

inline GroupOfRow* about_rows(Quad* group, int64_t rows) {
  return reinterpret_cast<GroupOfRow*>(group + rows * group_words);
}
inline const GroupOfRow* about_rows(const Quad* group, int64_t rows) {
  return reinterpret_cast<const GroupOfRow*>(group + rows * group_words);
}

// x[0 .. rows][0 .. k] to a packed tile of `height` rows; those beyond are left as they are.
template <class T>
__attribute__((always_inline)) inline void pack_codes(const T* x, int64_t x_stride, int rows,
                                                      int64_t height, int64_t k, int64_t words,
                                                      Quad* to) {
  for (int64_t g = 0; g * group_words < words; ++g, to += group_offset(height)) {
    const int64_t k0 = g * scaled_together;
    const int count = static_cast<int>(clamp(k - k0, 0, scaled_together));
    GroupOfRow* about = about_rows(to, height);
    for (int i = 0; i < rows; ++i) {
      I sum[2] = {whole(0), whole(0)};
      about[i].scale = quantise_group(x + i * x_stride + k0, count, to + i * group_words,
                                      [&](int half, I code) { sum[half] = sum[half] + code; });
      about[i].start[0] = -128 * total(sum[0]);
      about[i].start[1] = -128 * total(sum[1]);
      about[i].start[2] = about[i].start[0] + about[i].start[1];
    }
  }
}

// The groups of inputs that the blocks of a panel meet, one after the other.
class MetGroups {
 public:
  explicit MetGroups(const Panel<Quad>& p)
      : a(p.a), index(p.index), end(p.index + (p.depth ? p.blocks : 0)), depth(p.depth) {}

  // Goes on to the next group, unless there is none.
  bool next() {
    if (index == end) return false;
    word = at();
    second = word % group_words != 0;
    advance();
    both = !second && index < end && at() == word + half_words;
    if (both) advance();
    return true;
  }

  // Of a packed tile of `rows` rows.
  const Quad* in_tile(int64_t rows) const { return a + word / group_words * group_offset(rows); }

  bool second, both;  // halves that are met: the second alone, both, or the first alone

 private:
  const Quad* a;
  const std::int32_t *index, *end;  // the next block
  int64_t depth, done = 0;          // words of a block, and of those that are behind
  int64_t word = 0;                 // where the group begins

  int64_t at() const { return *index * depth + done; }
  void advance() {
    done += half_words;
    if (done == depth) ++index, done = 0;
  }
};

template <int MR, int NV, bool first>
void int8_panel(const Panel<Quad>& p) {
  // As in panel(): a short tile has too few sums to hide the latency of a dot product.
  constexpr int lanes = MR * NV >= 8 ? 1 : MR * NV >= 4 ? 2 : 4;
  constexpr int W = F::width;
  F total[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      total[i][j] = p.accumulate ? load(p.c + i * p.c_stride + j * W) : zero();

  const Quad* w = p.w;
  MetGroups met(p);
  while (met.next()) {
    const Quad* group = met.in_tile(MR);
    const Quad* a = group + (met.second ? half_words : 0);
    const GroupOfRow* about = about_rows(group, MR);
    const int halves = met.both ? 2 : 1, start_of = met.both ? 2 : met.second;
    I sum[lanes][MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const I start = whole(about[i].start[start_of]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) {
        sum[0][i][j] = start;
#pragma GCC unroll 4
        for (int l = 1; l < lanes; ++l) sum[l][i][j] = whole(0);
      }
    }
    for (int half = 0; half < halves; ++half) {
#pragma GCC unroll 8
      for (int k = 0; k < half_words; ++k) {
        if (first) {
          __builtin_prefetch(w + weights_ahead);
          if (NV == 2) __builtin_prefetch(w + weights_ahead + W);
        }
        I row[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) row[j] = load(w + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
          const I x = repeat(a[i * group_words + k]);
#pragma GCC unroll 2
          for (int j = 0; j < NV; ++j) sum[k % lanes][i][j] = dot(sum[k % lanes][i][j], row[j], x);
        }
        w += p.w_stride;
      }
      a += half_words;
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const F scale = set1(about[i].scale);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) {
#pragma GCC unroll 4
        for (int l = 1; l < lanes; ++l) sum[0][i][j] = sum[0][i][j] + sum[l][i][j];
        total[i][j] = fma(to_float(sum[0][i][j]), scale, total[i][j]);
      }
    }
  }

#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) store(p.c + i * p.c_stride + j * W, total[i][j]);
}

template <int NV, bool first, int MR = I::tile_rows>
inline PanelKernel<Quad> int8_panel_for(int rows) {
  if constexpr (MR > 1)
    if (rows != MR) return int8_panel_for<NV, first, MR - 1>(rows);
  return &int8_panel<MR, NV, first>;
}

// Products for x of T (float or bf16), strips of NV vectors of outputs.
template <class T, int NV>
class Int8Product {
 public:
  using Element = T;
  using Problem = Int8Linear<T>;
  using Word = Quad;
  static constexpr int inputs_in_word = 4;
  static constexpr int group_words = SECATEURS_ISA::group_words;
  static constexpr int strip = NV * F::width;
  static constexpr int tile_rows = I::tile_rows, whole_rows = 1;
  static constexpr bool even_tiles = true;
  // By 32 outputs: 96 KB of weights, as in VectorProduct.
  static constexpr int64_t resident_inputs = 3072;
  static constexpr int64_t items_per_thread = 4;
  static constexpr bool sums_in_y = false;

  struct Session {};

  explicit Int8Product(const Problem&) {}

  Session begin() const { return {}; }

  static bool reads_x(const Problem&) { return false; }
  static int64_t packed_row() { return group_words; }

  // Where word `word`, the first of a group, begins in a packed tile of `rows` rows.
  static int64_t offset(int64_t rows, int64_t word) {
    return word / group_words * group_offset(rows);
  }
  static int64_t padded(int64_t rows) { return rows; }

  // x[0 .. rows][0 .. k] to a packed tile.
  static void pack_tile(const T* x, int64_t x_stride, int rows, int64_t k, int64_t words,
                        Quad* to) {
    pack_codes(x, x_stride, rows, rows, k, words, to);
  }

  // The panel of a tile of `rows` rows.
  static void multiply(const Panel<Quad>& panel, int rows, bool first) {
    (first ? int8_panel_for<NV, true>(rows) : int8_panel_for<NV, false>(rows))(panel);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
