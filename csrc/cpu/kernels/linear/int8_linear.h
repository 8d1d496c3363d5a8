// y = act(x W^T + bias) * multiplier + residual, W block-sparse in codes of 8 bits, x rounded to such
// codes in groups, sums of a group exact.
#pragma once

#include "cpu/kernels/linear/int8_product.h"
#include "cpu/kernels/linear/int8_tile_product.h"
#include "cpu/kernels/linear/solver.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Strips of N vectors of outputs. A tile of sums costs as much for a few rows as for all.
template <class T, int N>
void int8_strips(const Int8Linear<T>& p) {
#ifdef SECATEURS_TILES
  if (p.m > I::tile_rows) {
    solve_linear<Int8TileProduct<T, N>>(p);
    return;
  }
#endif
  solve_linear<Int8Product<T, N>>(p);
}

// Blocks of 16, 32 or 64 outputs. y must not overlap any input.
template <class T>
void int8_linear(const Int8Linear<T>& p) {
  if (!p.m || !p.n) return;
  if (p.bn % (2 * F::width) == 0)
    int8_strips<T, 2>(p);
  else
    int8_strips<T, 1>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
