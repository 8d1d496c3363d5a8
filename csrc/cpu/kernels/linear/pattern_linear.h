// y = act(x W^T + bias) * multiplier + residual, where `v` neighbouring outputs keep the same inputs.
#pragma once

#include "cpu/kernels/linear/gather_panel.h"
#include "cpu/kernels/linear/gather_tiles.h"
#include "cpu/kernels/linear/pattern_solver.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Groups of a multiple of 16 outputs. y must not overlap any input.
template <class T>
void pattern_linear(const PatternLinear<T>& p) {
  if (!p.m || !p.groups) return;
#ifdef SECATEURS_TILES
  if constexpr (sizeof(T) == sizeof(bf16)) {
    if (p.v % 32 == 0)
      solve_pattern<GatherByTiles<2>>(p);
    else
      solve_pattern<GatherByTiles<1>>(p);
    return;
  }
#endif
  if (p.v % (2 * F::width) == 0)
    solve_pattern<GatherByVectors<T, 2>>(p);
  else
    solve_pattern<GatherByVectors<T, 1>>(p);
}

// How many inputs of an output lie side by side in weights of bfloat16.
#ifdef SECATEURS_TILES
constexpr int bf16_together = 32;
#else
constexpr int bf16_together = together<bf16>;
#endif

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
