// The product of int8_vector_linear: of each group of inputs, the codes that a group of outputs keeps
// are picked for all rows of a tile, then multiplied as if nothing else had ever been there.
//
// Here codes of x are stored without sign, as 128 + x, and those of weights have theirs. What 128 adds
// to a sum depends on the weights alone, and is known when they are packed: with codes of weights
// stored so, each choice of inputs would need another sum of each row of x.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/quantise.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

inline const Quad* quads(const void* from) { return static_cast<const Quad*>(from); }

// Some groups of inputs, as one group of outputs keeps them.
struct KeptCodes {
  const std::int32_t* indptr;  // where words begin, of the first of these groups on
  std::int64_t first, groups;
  const Quad* places;          // of word 0
  const Quad* w;               // of word 0, at the first output of a product
  const std::int32_t* starts;  // of the first of these groups, at that output
  std::int64_t v;
};

// Those of all groups of outputs.
template <class T>
class KeptWords {
 public:
  explicit KeptWords(const Int8VectorLinear<T>& p) : p(p), groups(ceil_div(p.k, scaled_together)) {}

  int64_t stored() const { return 4 * p.indptr[p.groups * groups]; }

  KeptCodes part(int64_t g, int64_t chunk, int64_t chunks) const {
    const int64_t from = cut(groups, chunks, chunk), to = cut(groups, chunks, chunk + 1);
    const int64_t pair = g * groups + from;
    return {p.indptr + pair,       from, to - from, quads(p.places), quads(p.values),
            p.starts + pair * p.v, p.v};
  }

 private:
  const Int8VectorLinear<T>& p;
  int64_t groups;
};

// A packed tile: group by group, [height][codes of a group], and behind all of them, group by group,
// [height] scales.
struct CodesOfTile {
  const float* x;
  std::int64_t height, groups;

  const Quad* codes(int64_t g) const { return quads(x) + g * height * group_words; }
  const float* scales(int64_t g) const { return x + (groups * group_words + g) * height; }
};

template <int MR, int NV>
void int8_vector_panel(const CodesOfTile& x, const KeptCodes& part, float* sums, bool accumulate) {
  // As in panel(): a short tile has too few sums to hide the latency of a dot product.
  constexpr int lanes = MR * NV >= 8 ? 1 : MR * NV >= 4 ? 2 : 4;
  constexpr int W = F::width;
  F total[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) total[i][j] = accumulate ? load(sums + (i * NV + j) * W) : zero();

  for (int64_t g = 0; g < part.groups; ++g) {
    const int64_t word = part.indptr[g];
    const int words = static_cast<int>(part.indptr[g + 1] - word);
    if (!words) continue;
    alignas(64) Quad picked[MR][group_words];
    const Picker pick(part.places + word, words);
    const Quad* codes = x.codes(part.first + g);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) pick(codes + i * group_words, picked[i]);

    I sum[lanes][MR][NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      const I start = load(quads(part.starts + g * part.v + j * W));
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        sum[0][i][j] = start;
#pragma GCC unroll 4
        for (int l = 1; l < lanes; ++l) sum[l][i][j] = whole(0);
      }
    }
    const Quad* w = part.w + word * part.v;
    const auto step = [&](int k, auto& acc) __attribute__((always_inline)) {
      I row[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) row[j] = load(w + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const I each = repeat(picked[i][k]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) acc[i][j] = dot(acc[i][j], each, row[j]);
      }
      w += part.v;
    };
    int k = 0;
    for (; k + lanes <= words; k += lanes)
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) step(k + l, sum[l]);
    for (; k < words; ++k) step(k, sum[0]);

    const float* scales = x.scales(part.first + g);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const F scale = set1(scales[i]);
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
    for (int j = 0; j < NV; ++j) store(sums + (i * NV + j) * W, total[i][j]);
}

using Int8VectorKernel = void (*)(const CodesOfTile&, const KeptCodes&, float*, bool);

template <int NV, int MR = I::tile_rows>
inline Int8VectorKernel int8_vector_panel_for(int rows) {
  if constexpr (MR > 1)
    if (rows != MR) return int8_vector_panel_for<NV, MR - 1>(rows);
  return &int8_vector_panel<MR, NV>;
}

// How int8_vector_linear multiplies x of T (float or bf16): strips of NV vectors of outputs.
template <class T, int NV>
class Int8VectorProduct {
 public:
  using Problem = Int8VectorLinear<T>;
  using Kept = KeptWords<T>;
  struct Session {};
  static constexpr int rows = I::tile_rows, outputs = NV * F::width;
  static constexpr int64_t sums = rows * outputs;
  static constexpr int64_t resident_inputs = 3072;  // of a tile of x: 19 KB, in L1

  Int8VectorProduct(const Problem& p, int) : groups(ceil_div(p.k, scaled_together)) {}

  static bool reads_x(int64_t) { return false; }

  // A multiple of a cache line.
  static int64_t packed(int height, int64_t k) {
    return ceil_div(ceil_div(k, scaled_together) * (group_words + 1) * height, 16) * 16;
  }

  static void pack_tile(const T* x, int64_t stride, int height, int64_t k, float* to) {
    const int64_t groups = ceil_div(k, scaled_together);
    auto* codes = reinterpret_cast<Quad*>(to);
    float* scales = to + groups * group_words * height;
    for (int64_t k0 = 0; k0 < k; k0 += scaled_together)
      for (int i = 0; i < height; ++i, codes += group_words) {
        const int count = static_cast<int>(clamp(k - k0, 0, scaled_together));
        *scales++ = quantise_group(x + i * stride + k0, count, codes, [](int, I) {});
        for (int word = 0; word < group_words; ++word)
          for (std::uint8_t& code : codes[word].codes) code ^= 128;
      }
  }

  // The product with the outputs of a group from the given one on.
  void multiply(const float* x, int height, KeptCodes part, int64_t output, float* to,
                bool accumulate) const {
    part.w += output;
    part.starts += output;
    int8_vector_panel_for<NV>(height)({x, height, groups}, part, to, accumulate);
  }

  // The sums as rows of x by outputs, `outputs` apart.
  static const float* by_rows(const float* from, float*) { return from; }

 private:
  int64_t groups;
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
