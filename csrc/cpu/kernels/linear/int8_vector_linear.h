// y = act(x W^T + bias) * multiplier + residual in codes of 8 bits, where `v` neighbouring outputs keep
// the same inputs.
#pragma once

#include "cpu/kernels/linear/int8_vector_product.h"
#include "cpu/kernels/linear/pattern_solver.h"
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Groups of a multiple of 16 outputs. y must not overlap any input.
template <class T>
void int8_vector_linear(const Int8VectorLinear<T>& p) {
  if (!p.m || !p.groups) return;
  if (p.v % (2 * F::width) == 0)
    solve_pattern<Int8VectorProduct<T, 2>>(p);
  else
    solve_pattern<Int8VectorProduct<T, 1>>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
