// The kernel of stacked_linear.h: mma.sync on tiles that cp.async brings, several steps ahead.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/stacked_linear/stacked_linear.h"
#include "cuda/tile.cuh"

namespace secateurs::cuda {

// SINGLE: blocks of one input. Few rows of x are then gathered number by number; more come turned, so
// that an input that is kept is a run of memory. A step is STEP inputs of a stack; STAGES steps are on
// their way at once. Warps share a tile by WM rows and WN columns; with WK > 1 they share each step's
// inputs too, and their sums are added at the end (few rows: the tile is too small to share).
template <class T_, int BM_, int BN_, int STEP_, int STAGES_, int WM_, int WN_, int WK_,
          bool SINGLE_>
struct StackedTile {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, STEP = STEP_, STAGES = STAGES_;
  static constexpr int WM = WM_, WN = WN_, WK = WK_, THREADS = WM * WN * WK * 32;
  static constexpr bool SINGLE = SINGLE_, GATHERS = SINGLE && BM == 16, TURNED = SINGLE && !GATHERS;
  static constexpr int MT = BM / WM / 16, NT = BN / WN / 8;  // fragments of a warp

  // Chunks of 16 bytes.
  static constexpr int X_CHUNKS = (TURNED ? BM : STEP) / 8, W_CHUNKS = BN / 8;  // in a row
  static constexpr int X_TILE = BM * STEP / 8, W_TILE = BN * STEP / 8, STAGE = X_TILE + W_TILE;
  static constexpr int X_PASSES = X_TILE / THREADS, W_PASSES = W_TILE / THREADS;  // of a thread
  static constexpr int LOOK_UPS = TURNED ? X_PASSES : 1;
  static constexpr int NUMBERS = GATHERS ? BM * STEP / THREADS : 0;  // of a thread

  static constexpr int ROW = BN + 4;  // floats; the padding keeps fragments off each other's banks
  static constexpr int PIPELINE_BYTES = STAGES * STAGE * 16, SUM_BYTES = WK * BM * ROW * 4;
  static constexpr int BYTES = PIPELINE_BYTES > SUM_BYTES ? PIPELINE_BYTES : SUM_BYTES;
  static_assert(X_TILE % THREADS == 0 && W_TILE % THREADS == 0 && NT % 2 == 0);
  static_assert(THREADS % X_CHUNKS == 0 && THREADS % W_CHUNKS == 0 && STEP / 16 % WK == 0);
  static_assert(!GATHERS || (THREADS % STEP == 0 && STAGES > 2));
  static_assert(BYTES <= 99 * 1024, "the smallest GPU has 99 KiB for a thread block");
};

struct StackedParameters {
  StackedLinear p;
  Cut cut;
  int log_bk;
  bool aligned;
};

__device__ inline int stack_begin(const StackedLinear& p, int row) {
  return p.indptr ? p.indptr[row] : static_cast<int>(std::int64_t{p.blocks} * row / p.rows);
}

__device__ inline int part_begin(const StackedParameters& s, int part) {
  return static_cast<int>(std::int64_t{s.p.blocks} * part / s.cut.parts);
}

__device__ inline int part_of(const StackedParameters& s, int block) {
  return static_cast<int>(((block + std::int64_t{1}) * s.cut.parts - 1) / s.p.blocks);
}

// The row whose stack holds a block.
__device__ inline int row_of(const StackedLinear& p, int block) {
  int low = 0, high = p.rows;  // begin(low) <= block < begin(high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (stack_begin(p, middle) <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// A part of a tile: piece 0 where the row began in an earlier part, else 1.
__device__ inline float* piece(const StackedParameters& s, int part, int which,
                               std::int64_t tile_m) {
  return s.p.partial +
         ((part * std::int64_t{2} + which) * s.cut.tiles_m + tile_m) * s.cut.bm * s.p.bn;
}

// Brings the steps of one run of blocks into the pipeline.
template <class C>
struct StackLoader {
  const StackedParameters& s;
  uint4* memory;
  std::int64_t first_m;
  int rows;                               // of x in the tile
  int begin, inputs;                      // first block, inputs in the run
  int column[C::LOOK_UPS];                // of the next step, -1: behind the end
  typename C::T numbers[C::NUMBERS + 1];  // of x, gathered for the step that is stored next

  static constexpr int ROWS_ON = C::GATHERS ? C::THREADS / C::STEP : 1;  // from number to number

  // Where in x the chunks of a step stand. Looked up one step ahead: a copy whose address waits for
  // a load is issued late.
  __device__ void look_up(int step) {
#pragma unroll
    for (int i = 0; i < C::LOOK_UPS; ++i) {
      const int t = threadIdx.x + i * C::THREADS;
      const int in_step = C::GATHERS  ? t % C::STEP
                          : C::TURNED ? t / C::X_CHUNKS
                                      : t % C::X_CHUNKS * 8;
      const int k = step * C::STEP + in_step;
      column[i] = -1;
      if (k < inputs) {
        const int log = C::SINGLE ? 0 : s.log_bk;
        column[i] = (s.p.indices[begin + (k >> log)] << log) + (k & ((1 << log) - 1));
      }
    }
  }

  __device__ uint4* stage(int step) const { return memory + step % C::STAGES * C::STAGE; }

  // Gathers x for the step that was looked up. No copy brings two bytes, so that they pass through
  // registers, and nothing asks for them before `store`, a step later. Rows that x has not may hold
  // anything: they stay rows.
  __device__ void gather() {
    const int row = threadIdx.x / C::STEP;
    const auto* from = static_cast<const typename C::T*>(s.p.x) + max(column[0], 0) +
                       (first_m + row) * s.p.x_stride;
#pragma unroll
    for (int i = 0; i < C::NUMBERS; ++i) {
      if (row + i * ROWS_ON >= rows) break;
      numbers[i] = *from;
      from += ROWS_ON * s.p.x_stride;
    }
  }

  __device__ void store(int step) const {
    auto* x = reinterpret_cast<typename C::T*>(stage(step));
    const int k = threadIdx.x % C::STEP;
    const bool there = step * C::STEP + k < inputs;
#pragma unroll
    for (int i = 0; i < C::NUMBERS; ++i) {
      const int row = threadIdx.x / C::STEP + i * ROWS_ON;
      if (row >= rows) break;
      x[swizzled<C::X_CHUNKS>(row, k / 8) * 8 + k % 8] =
          there ? numbers[i] : from_float<typename C::T>(0);
    }
  }

  __device__ void load(int step) {
    uint4* x = stage(step);
    uint4* w = x + C::X_TILE;
    const auto* from_w = static_cast<const typename C::T*>(s.p.values) +
                         ((std::int64_t{begin} << s.log_bk) + step * C::STEP) * C::BN;
    if constexpr (!C::GATHERS) {
      const auto* from_x = static_cast<const typename C::T*>(s.p.x);
#pragma unroll
      for (int i = 0; i < C::X_PASSES; ++i) {
        const int t = threadIdx.x + i * C::THREADS;
        const int row = t / C::X_CHUNKS, chunk = t % C::X_CHUNKS;
        const int at = column[C::TURNED ? i : 0];
        const std::int64_t m = first_m + (C::TURNED ? chunk * 8 : row);
        const bool live = at >= 0 && m < (C::TURNED ? s.p.x_stride : s.p.epilogue.m);
        // A dead copy reads nothing, but its address is checked too.
        const int from = live ? at : 0;
        ptx::copy_async16(x + swizzled<C::X_CHUNKS>(row, chunk),
                          from_x + (C::TURNED ? from * s.p.x_stride + m : m * s.p.x_stride + from),
                          live);
      }
      look_up(step + 1);
    }
#pragma unroll
    for (int i = 0; i < C::W_PASSES; ++i) {
      const int t = threadIdx.x + i * C::THREADS;
      const int k = t / C::W_CHUNKS, chunk = t % C::W_CHUNKS;
      const bool live = step * C::STEP + k < inputs;
      ptx::copy_async16(w + swizzled<C::W_CHUNKS>(k, chunk), from_w + std::int64_t{8} * t, live);
    }
  }
};

// sum += x W^T over one run of blocks.
template <class C>
__device__ inline void multiply_run(const StackedParameters& s, uint4* memory, std::int64_t first_m,
                                    int begin, int end, float (&sum)[C::MT][C::NT][4]) {
  const int warp = threadIdx.x / 32;
  const int wm = warp % C::WM, wn = warp / C::WM % C::WN, wk = warp / (C::WM * C::WN);
  const auto rows = static_cast<int>(min(std::int64_t{C::BM}, s.p.epilogue.m - first_m));
  StackLoader<C> loader{s, memory, first_m, rows, begin, (end - begin) << s.log_bk, {}, {}};
  const int steps = (loader.inputs + C::STEP - 1) / C::STEP;
  loader.look_up(0);
#pragma unroll
  for (int step = 0; step < C::STAGES - 1; ++step) {
    if (step < steps) loader.load(step);
    ptx::commit_copies();
  }
  if constexpr (C::GATHERS) {
    loader.gather();
    loader.look_up(1);
    loader.store(0);
    loader.gather();
    loader.look_up(2);
  }
  for (int step = 0; step < steps; ++step) {
    ptx::wait_copies<C::STAGES - 2>();
    ptx::sync_block();
    // The step is there for all, and all are done with the stage that is loaded next.
    if (step + C::STAGES - 1 < steps) loader.load(step + C::STAGES - 1);
    ptx::commit_copies();
    if constexpr (C::GATHERS) {
      loader.store(step + 1);
      loader.gather();
      loader.look_up(step + 3);
    }
    const uint4* x = loader.stage(step);
    const uint4* w = x + C::X_TILE;
#pragma unroll
    for (int i = 0; i < C::STEP / 16 / C::WK; ++i) {
      const int k = (i * C::WK + wk) * 16;
      std::uint32_t a[C::MT][4], b[C::NT / 2][4];
#pragma unroll
      for (int mt = 0; mt < C::MT; ++mt) {
        const int m = (wm * C::MT + mt) * 16;
        if constexpr (C::TURNED) {
          load_columns<C::X_CHUNKS>(a[mt], x, k, m / 8);
        } else {
          load_rows<C::X_CHUNKS>(a[mt], x, m, k / 8);
        }
      }
#pragma unroll
      for (int nt = 0; nt < C::NT / 2; ++nt)
        load_pair<C::W_CHUNKS>(b[nt], w, k, wn * C::NT + nt * 2);
#pragma unroll
      for (int mt = 0; mt < C::MT; ++mt)
#pragma unroll
        for (int nt = 0; nt < C::NT; ++nt)
          ptx::multiply<typename C::T>(sum[mt][nt], a[mt], b[nt / 2][nt % 2 * 2],
                                       b[nt / 2][nt % 2 * 2 + 1]);
    }
  }
  // Every stage is read; the last copies landed with the last step.
  ptx::sync_block();
}

// Sums out of the fragments into `rows`, [WK][BM][ROW] floats, for whole rows to be stored.
template <class C>
__device__ inline void lay_out(float* rows, const float (&sum)[C::MT][C::NT][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wm = warp % C::WM, wn = warp / C::WM % C::WN, wk = warp / (C::WM * C::WN);
#pragma unroll
  for (int mt = 0; mt < C::MT; ++mt)
#pragma unroll
    for (int nt = 0; nt < C::NT; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = (wm * C::MT + mt) * 16 + lane / 4 + i / 2 * 8;
        const int n = (wn * C::NT + nt) * 8 + lane % 4 * 2 + i % 2;
        rows[(wk * C::BM + m) * C::ROW + n] = sum[mt][nt][i];
      }
}

template <class C>
__global__ void __launch_bounds__(C::THREADS) stacked_linear(StackedParameters s) {
  auto* memory = reinterpret_cast<uint4*>(ptx::dyn_smem<16>());
  int row, begin, stop;
  std::int64_t tile_m;
  if (s.cut.parts) {
    const int part = blockIdx.x / s.cut.tiles_m;
    tile_m = blockIdx.x % s.cut.tiles_m;
    begin = part_begin(s, part);
    stop = part_begin(s, part + 1);
    row = row_of(s.p, begin);
  } else {
    // Eight tiles of rows go through all rows of blocks together: what they read is in L2 but once.
    constexpr int GROUP = 8;
    const std::int64_t group = blockIdx.x / (GROUP * s.p.rows),
                       in_group = blockIdx.x % (GROUP * s.p.rows);
    const std::int64_t height = min(std::int64_t{GROUP}, s.cut.tiles_m - group * GROUP);
    tile_m = group * GROUP + in_group % height;
    row = static_cast<int>(in_group / height);
    begin = stack_begin(s.p, row);
    stop = stack_begin(s.p, row + 1);
  }
  const int first = begin;
  do {
    const int row_begin = stack_begin(s.p, row), row_end = stack_begin(s.p, row + 1);
    const int end = min(stop, row_end);
    if (s.cut.parts && end == begin) {  // nothing stored: the second kernel's
      ++row;
      continue;
    }
    float sum[C::MT][C::NT][4] = {};
    multiply_run<C>(s, memory, tile_m * C::BM, begin, end, sum);
    auto* sums = reinterpret_cast<float*>(memory);
    lay_out<C>(sums, sum);
    ptx::sync_block();
    const bool whole = row_begin >= first && row_end <= stop;
    float* partial =
        whole ? nullptr : piece(s, blockIdx.x / s.cut.tiles_m, row_begin >= first, tile_m);
    for (int t = threadIdx.x; t < C::BM * C::W_CHUNKS; t += C::THREADS) {
      const int m = t / C::W_CHUNKS, n = t % C::W_CHUNKS * 8;
      float total[8] = {};
      add8<C::WK, C::BM, C::ROW>(total, sums, m, n);
      if (whole) {
        finish8<typename C::T>(s.p.epilogue, s.aligned, tile_m * C::BM + m,
                               std::int64_t{row} * C::BN + n, total);
      } else {
        store8(partial + m * C::BN + n, total, 8, true);
      }
    }
    // The next run's copies land where the sums are.
    ptx::sync_block();
    begin = end;
    ++row;
  } while (begin < stop);
}

// Adds the pieces of the rows that were cut, in order, and finishes them, and the empty rows.
template <class T>
__global__ void __launch_bounds__(128) finish_pieces(StackedParameters s) {
  const int row = static_cast<int>(blockIdx.x / s.cut.tiles_m);
  const std::int64_t tile_m = blockIdx.x % s.cut.tiles_m;
  const int begin = stack_begin(s.p, row), end = stack_begin(s.p, row + 1);
  const int first = begin < end ? part_of(s, begin) : 0,
            last = begin < end ? part_of(s, end - 1) : -1;
  if (first == last) return;
  const int chunks = s.p.bn / 8;
  for (int t = threadIdx.x; t < s.cut.bm * chunks; t += 128) {
    const int m = t / chunks, n = t % chunks * 8;
    float total[8] = {};
    for (int part = first; part <= last; ++part) {
      const float* from = piece(s, part, part == first, tile_m);
      float sum[8];
      load8(sum, from + m * s.p.bn + n, 8, true);
#pragma unroll
      for (int i = 0; i < 8; ++i) total[i] += sum[i];
    }
    finish8<T>(s.p.epilogue, s.aligned, tile_m * s.cut.bm + m, std::int64_t{row} * s.p.bn + n,
               total);
  }
}

}  // namespace secateurs::cuda
