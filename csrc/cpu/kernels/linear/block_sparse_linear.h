// y = act(x W^T + bias) * multiplier + residual, W block-sparse, float or bf16 with sums in float.
#pragma once

#include "cpu/kernels/linear/solver.h"
#include "cpu/kernels/linear/vector_product.h"
#ifdef SECATEURS_TILES
  #include "cpu/kernels/linear/tile_product.h"
#endif
#include "cpu/problems.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// Blocks of 16, 32 or 64 outputs. y must not overlap any input.
void block_sparse_linear(const BlockSparseLinear<float>& p) {
  if (!p.m || !p.n) return;
  if (p.bn % (2 * F::width) == 0)
    solve_linear<VectorProduct<float, float, 2>>(p);
  else
    solve_linear<VectorProduct<float, float, 1>>(p);
}

// The same; blocks of an even number of inputs.
void block_sparse_linear_bf16(const BlockSparseLinear<bf16>& p) {
  if (!p.m || !p.n) return;
#ifdef SECATEURS_TILES
  if (p.bk && p.bk % 16 == 0) {
    if (p.bn % 32 == 0)
      solve_linear<TileProduct<2>>(p);
    else
      solve_linear<TileProduct<1>>(p);
    return;
  }
#endif
  if (p.bn % (2 * F::width) == 0)
    solve_linear<VectorProduct<bf16, Pair, 2>>(p);
  else
    solve_linear<VectorProduct<bf16, Pair, 1>>(p);
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
