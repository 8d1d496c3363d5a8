// Tiles whose inputs were cut into parts: how the parts are added up.
#pragma once

#include "cuda/cut.h"
#include "cuda/epilogue.cuh"
#include "cuda/launch.h"

namespace secateurs::cuda {

// Of tiles of cut.bm rows by bn outputs, rows first, each part's sums: [tiles, parts, bm, bn].
struct Parts {
  Epilogue epilogue;
  Cut cut;
  int bn;
  bool aligned;
  const float* partial;
};

// Adds the parts of a tile in order and finishes it.
template <class T>
__global__ void __launch_bounds__(128) finish_parts(Parts p) {
  const int bm = p.cut.bm, chunks = p.bn / 8;
  const float* parts = p.partial + blockIdx.x * std::int64_t{p.cut.parts} * bm * p.bn;
  const std::int64_t first_m = blockIdx.x % p.cut.tiles_m * bm,
                     first_n = blockIdx.x / p.cut.tiles_m * p.bn;
  for (int t = threadIdx.x; t < bm * chunks; t += 128) {
    const int m = t / chunks, n = t % chunks * 8;
    if (first_m + m >= p.epilogue.m) break;  // no part has stored it
    float total[8] = {};
    for (int part = 0; part < p.cut.parts; ++part) {
      float sum[8];
      load8(sum, parts + (std::int64_t{part} * bm + m) * p.bn + n, 8, true);
#pragma unroll
      for (int i = 0; i < 8; ++i) total[i] += sum[i];
    }
    finish8<T>(p.epilogue, p.aligned, first_m + m, first_n + n, total);
  }
}

// Stores the sums of outputs n .. n + 8 of a tile's row m as those of a part, the thread block's.
template <int BM, int BN>
__device__ inline void store_part(float* partial, int m, int n, const float (&sum)[8]) {
  store8(partial + (blockIdx.x * std::int64_t{BM} + m) * BN + n, sum, 8, true);
}

}  // namespace secateurs::cuda
