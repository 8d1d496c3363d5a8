// Tiles in shared memory and in fragments: what the linear kernels share.
#pragma once

#include "cuda/number.cuh"

namespace secateurs::cuda {

// Where chunk `chunk` (16 bytes) of row `row` stands, in chunks, in a tile of CHUNKS a row: exclusive
// or with the row spreads what ldmatrix reads at once (eight rows, one chunk) over all banks.
template <int CHUNKS>
__device__ inline int swizzled(int row, int chunk) {
  static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0);
  constexpr int SHARING = CHUNKS >= 8 ? 1 : 8 / CHUNKS;  // rows that fill all banks once
  return row * CHUNKS + (chunk ^ (row / SHARING % (CHUNKS < 8 ? CHUNKS : 8)));
}

// The fragment of a [16, 16] from a tile of rows: rows row .. row + 16, chunks chunk and chunk + 1.
template <int CHUNKS>
__device__ inline void load_rows(std::uint32_t (&a)[4], const uint4* tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::load_matrices(a, tile + swizzled<CHUNKS>(row + lane % 16, chunk + lane / 16));
}

// The same from a tile that holds the transpose: its rows are the columns k .. k + 16.
template <int CHUNKS>
__device__ inline void load_columns(std::uint32_t (&a)[4], const uint4* tile, int k, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::load_matrices_transposed(
      a, tile + swizzled<CHUNKS>(k + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
}

// The fragments of b [16, 8] twice, side by side, from a tile of inputs k .. k + 16: b[0], b[1] and
// b[2], b[3].
template <int CHUNKS>
__device__ inline void load_pair(std::uint32_t (&b)[4], const uint4* tile, int k, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::load_matrices_transposed(b, tile + swizzled<CHUNKS>(k + lane % 16, chunk + lane / 16));
}

// The fragment of b [32, 8] for a sparse product from a tile of rows: b's columns are rows
// row .. row + 8, its inputs chunks chunk .. chunk + 4.
template <int CHUNKS>
__device__ inline void load_long(std::uint32_t (&b)[4], const uint4* tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::load_matrices(b, tile + swizzled<CHUNKS>(row + lane % 8, chunk + lane / 8));
}

// Sums n .. n + 8 of row m, added up over WK copies of [BM][ROW] floats.
template <int WK, int BM, int ROW>
__device__ inline void add8(float (&total)[8], const float* sums, int m, int n) {
#pragma unroll
  for (int wk = 0; wk < WK; ++wk)
#pragma unroll
    for (int i = 0; i < 8; ++i) total[i] += sums[(wk * BM + m) * ROW + n + i];
}

}  // namespace secateurs::cuda
