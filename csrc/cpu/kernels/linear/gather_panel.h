// The product of pattern_linear by vectors: sums in registers, as in panel.h, but each row of
// weights says which input it meets, so a tile of x, input-major, is read wherever that lies.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/kept_inputs.h"
#include "cpu/kernels/pack.h"
#include "cpu/kernels/panel.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// How many inputs of an output lie side by side in the stored weights.
template <class T>
constexpr int together = sizeof(T) == sizeof(float) ? 1 : 2;

template <class T>
struct GatherPanel : KeptPart<T> {
  const float* x;  // [inputs][height]
  std::int64_t height;
  float* sums;  // [MR][NV vectors]
  bool accumulate;
};

// Weights of one input, or of two inputs, for W outputs.
inline void weights_of(const float* w, F (&each)[1]) { split(float{}, load(w), each); }
inline void weights_of(const bf16* w, F (&each)[2]) {
  split(Pair{}, load(reinterpret_cast<const float*>(w)), each);
}

template <class T, int MR, int NV>
void gather_panel(const GatherPanel<T>& p) {
  // A short tile has too few sums to hide the latency of a multiply-add: each is split in several.
  constexpr int lanes = MR * NV >= 8 ? 1 : MR * NV >= 4 ? 2 : 4;
  constexpr int W = F::width, side = together<T>;
  F sum[lanes][MR][NV];
#pragma GCC unroll 4
  for (int l = 0; l < lanes; ++l)
#pragma GCC unroll 24
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) sum[l][i][j] = zero();

  // The first `inputs` of the step's inputs.
  const auto step = [&](int64_t at, int inputs, auto& acc) __attribute__((always_inline)) {
    const T* w = p.w + at * p.w_outputs;
    F row[NV][side];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) weights_of(w + j * W * side, row[j]);
#pragma GCC unroll 2
    for (int s = 0; s < side; ++s) {
      if (s >= inputs) break;
      const float* x = p.x + p.columns[at + s] * p.height;
#pragma GCC unroll 24
      for (int i = 0; i < MR; ++i) {
        const F each = set1(x[i]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j) acc[i][j] = fma(each, row[j][s], acc[i][j]);
      }
    }
  };

  int64_t at = 0;
  for (; at + lanes * side <= p.count; at += lanes * side)
#pragma GCC unroll 4
    for (int l = 0; l < lanes; ++l) step(at + l * side, side, sum[l]);
  for (; at + side <= p.count; at += side) step(at, side, sum[0]);
  if (at < p.count) step(at, 1, sum[0]);

#pragma GCC unroll 24
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      float* c = p.sums + (i * NV + j) * W;
      F total = sum[0][i][j];
#pragma GCC unroll 4
      for (int l = 1; l < lanes; ++l) total = total + sum[l][i][j];
      store(c, p.accumulate ? load(c) + total : total);
    }
}

template <class T>
using GatherKernel = void (*)(const GatherPanel<T>&);

// The kernel for `rows` <= F::tile_rows(NV) rows.
template <class T, int NV, int MR = F::tile_rows(NV)>
inline GatherKernel<T> gather_panel_for(int rows) {
  if constexpr (MR > 1)
    if (rows != MR) return gather_panel_for<T, NV, MR - 1>(rows);
  return &gather_panel<T, MR, NV>;
}

// How pattern_linear multiplies: rows of x by strips of outputs.
template <class T, int NV>
class GatherByVectors {
 public:
  using Problem = PatternLinear<T>;
  using Kept = KeptInputs<T, together<T>>;
  struct Session {};
  static constexpr int rows = F::tile_rows(NV), outputs = NV * F::width;
  static constexpr int64_t sums = rows * outputs;  // floats of a tile
  static constexpr int64_t resident_inputs = 768;  // of a tile of x: 36 KB, in L1

  // Heights of tiles differ by at most one.
  GatherByVectors(const Problem&, int tallest)
      : tallest(tallest),
        panel_tallest(gather_panel_for<T, NV>(tallest)),
        panel_lower(gather_panel_for<T, NV>(tallest > 1 ? tallest - 1 : 1)) {}

  // Whether `m` rows may be read as they lie: one of float32 is its own packed form.
  static bool reads_x(int64_t m) { return m == 1 && sizeof(T) == sizeof(float); }

  // Floats of a packed tile.
  static int64_t packed(int height, int64_t k) { return height * k; }

  static void pack_tile(const T* x, int64_t stride, int height, int64_t k, float* to) {
    pack([&](int i) { return x + i * stride; }, height, k, 1, to, height);
  }

  // The product with the outputs of a group from the given one on.
  void multiply(const float* x, int height, KeptPart<T> part, int64_t output, float* to,
                bool accumulate) const {
    part.w += output * together<T>;
    (height == tallest ? panel_tallest : panel_lower)({part, x, height, to, accumulate});
  }

  // The sums as rows of x by outputs, `outputs` apart.
  static const float* by_rows(const float* from, float*) { return from; }

 private:
  int tallest;
  GatherKernel<T> panel_tallest, panel_lower;
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
