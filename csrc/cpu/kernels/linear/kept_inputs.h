// Which inputs the groups of outputs of a PatternLinear keep.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Kept inputs of a group of outputs, `side` of them side by side in its weights.
template <class T>
struct KeptPart {
  const std::int32_t* columns;  // the inputs of x that are met
  std::int64_t count;
  const T* w;              // [count / side][w_outputs][side]
  std::int64_t w_outputs;  // of which a product takes some
};

// The inputs that all groups keep.
template <class T, int side>
class KeptInputs {
 public:
  explicit KeptInputs(const PatternLinear<T>& p) : p(p) {
    if (!p.indptr) return;
    first_step =
        reinterpret_cast<std::int32_t*>(scratch(2, static_cast<std::size_t>(p.groups + 1)));
    first_step[0] = 0;
    for (int64_t g = 0; g < p.groups; ++g)
      first_step[g + 1] =
          first_step[g] + static_cast<std::int32_t>(ceil_div(p.indptr[g + 1] - p.indptr[g], side));
  }

  // Inputs of all groups.
  int64_t stored() const { return p.indptr ? p.indptr[p.groups] : p.groups * p.kept; }

  // Those of one group, and of these one of `chunks` equal parts.
  KeptPart<T> part(int64_t g, int64_t chunk, int64_t chunks) const {
    const int64_t begin = p.indptr ? p.indptr[g] : g * p.kept;
    const int64_t kept = p.indptr ? p.indptr[g + 1] - begin : p.kept, steps = ceil_div(kept, side);
    const int64_t from = cut(steps, chunks, chunk), to = cut(steps, chunks, chunk + 1);
    const int64_t first = first_step ? first_step[g] : g * steps;
    return {p.columns + begin + from * side, (to * side < kept ? to * side : kept) - from * side,
            p.values + (first + from) * p.v * side, p.v};
  }

 private:
  const PatternLinear<T>& p;
  // Where a group's weights begin, in steps of `side` inputs; null where all keep equally many.
  std::int32_t* first_step = nullptr;
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
