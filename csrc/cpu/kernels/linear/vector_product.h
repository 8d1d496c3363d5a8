// How a linear's product runs on vectors: x input-major, a panel of sums in registers.
#pragma once

#include "cpu/kernels/pack.h"
#include "cpu/kernels/panel.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// A row of x as the vectors of floats that loads move, whatever the bits mean.
inline const float* words_of(const float* x) { return x; }
inline const float* words_of(const bf16* x) { return reinterpret_cast<const float*>(x); }

// What is left of a row behind its last whole word.
inline void pack_rest(const float*, int64_t, int64_t, int, float*) {}
inline void pack_rest(const bf16* x, int64_t x_stride, int64_t k, int rows, Pair* to) {
  if (k % 2)
    for (int i = 0; i < rows; ++i) to[i] = {x[i * x_stride + k - 1], {0}};
}

// Products of T (float or bf16), strips of NV vectors of outputs.
template <class T, class W, int NV>
class VectorProduct {
 public:
  using Element = T;
  using Problem = BlockSparseLinear<T>;
  using Word = W;
  static constexpr int inputs_in_word = sizeof(Word) / sizeof(T);
  static constexpr int group_words = 1;
  static constexpr int strip = NV * F::width;
  static constexpr int tile_rows = F::tile_rows(NV), whole_rows = 1;
  static constexpr bool even_tiles = true;
  // Inputs by 32 outputs: 96 KB of weights, which come from L2 while the sums stay in registers.
  static constexpr int64_t resident_inputs = 768 * inputs_in_word;
  static constexpr int64_t items_per_thread = 4;
  // Sums may wait in y itself.
  static constexpr bool sums_in_y = sizeof(T) == sizeof(float);

  struct Session {};

  explicit VectorProduct(const BlockSparseLinear<T>&) {}

  Session begin() const { return {}; }

  // Whether x may be read as it lies: a single row is packed already.
  static bool reads_x(const BlockSparseLinear<T>& p) { return p.m == 1; }

  // From one row of a packed tile to the next.
  static int64_t packed_row() { return 1; }

  // Where word `word` of a packed tile begins, whose words are `stride` apart.
  static int64_t offset(int64_t stride, int64_t word) { return word * stride; }

  // Rows of a packed tile.
  static int64_t padded(int64_t rows) { return rows; }

  // x[0 .. rows][0 .. k] to a tile [words][rows].
  static void pack_tile(const T* x, int64_t x_stride, int rows, int64_t k, int64_t words,
                        Word* to) {
    const int64_t whole = k / inputs_in_word;
    pack([&](int i) { return words_of(x + i * x_stride); }, rows, whole,
         reinterpret_cast<float*>(to), rows, [](F bits) { return bits; });
    if (words > whole)
      __builtin_memset(to + whole * rows, 0,
                       static_cast<std::size_t>((words - whole) * rows) * sizeof(Word));
    pack_rest(x, x_stride, k, rows, to + whole * rows);
  }

  // The panel of a tile of `rows` rows.
  static void multiply(const Panel<Word>& panel, int rows, bool first) {
    (first ? panel_for<Word, NV, true>(rows) : panel_for<Word, NV, false>(rows))(panel);
  }
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
