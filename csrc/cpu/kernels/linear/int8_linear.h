// y = act(x W^T + bias) * multiplier + residual, W block-sparse in codes of 8 bits, x rounded to such
// codes in groups, sums of a group exact.
#pragma once

#include "cpu/kernels/linear/int8_product.h"
#include "cpu/kernels/linear/solver.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Blocks of 16, 32 or 64 outputs. y must not overlap any input.
template <class T>
void int8_linear(const Int8Linear<T>& p) {
  if (!p.m || !p.n) return;
  if (p.bn % (2 * F::width) == 0)
    solve_linear<Int8Product<T, 2>>(p);
  else
    solve_linear<Int8Product<T, 1>>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
