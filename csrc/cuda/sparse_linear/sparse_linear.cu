// 2:4 weights on the sparse tensor cores (mma.sp).
//
// The sparse operand stands on the left, so it is y^T = W x^T that is computed: a tile is BN outputs
// by BM rows of x, and turned round on its way out. Where there are too few tiles for the GPU, the
// inputs are cut too.
#include "cuda/sparse_linear/sparse_linear.h"

#include "cuda/parts.cuh"
#include "cuda/tile.cuh"

namespace secateurs::cuda {
namespace {

// As for StackedTile: warps share a tile by WN outputs and WM rows, or with WK by inputs.
template <class T_, int BM_, int BN_, int STEP_, int STAGES_, int WM_, int WN_, int WK_>
struct SparseTile {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, STEP = STEP_, STAGES = STAGES_;
  static constexpr int WM = WM_, WN = WN_, WK = WK_, THREADS = WM * WN * WK * 32;
  static constexpr int NT = BN / WN / 16, MT = BM / WM / 8;  // fragments of a warp

  // Chunks of 16 bytes.
  static constexpr int X_CHUNKS = STEP / 8, W_CHUNKS = STEP / 16, KEPT_CHUNKS = STEP / 32 * 4;
  static constexpr int X_TILE = BM * X_CHUNKS, W_TILE = BN * W_CHUNKS;
  static constexpr int KEPT_TILE = BN / 16 * KEPT_CHUNKS, STAGE = X_TILE + W_TILE + KEPT_TILE;

  static constexpr int ROW = BN + 4;
  static constexpr int PIPELINE_BYTES = STAGES * STAGE * 16, SUM_BYTES = WK * BM * ROW * 4;
  static constexpr int BYTES = PIPELINE_BYTES > SUM_BYTES ? PIPELINE_BYTES : SUM_BYTES;
  static_assert(X_TILE % THREADS == 0 && W_TILE % THREADS == 0 && STEP / 32 % WK == 0);
  static_assert(THREADS % X_CHUNKS == 0 && THREADS % W_CHUNKS == 0 && KEPT_TILE <= THREADS);
  static_assert(BYTES <= 99 * 1024);
};

constexpr std::uint32_t ANY_PLACES = 0x44444444;  // the first and second of every four

struct SparseParameters {
  SparseLinear p;
  Cut cut;
  bool aligned;
};

// Outputs of a tile.
__host__ __device__ constexpr int tile_outputs(int bm) { return bm == 16 ? 32 : 128; }

std::int64_t tiles(const SparseLinear& p, const Cut& cut) {
  const int bn = tile_outputs(cut.bm);
  return cut.tiles_m * ((p.epilogue.n + bn - 1) / bn);
}

// The copies of a thread. Where they come from is told once, and moves on from step to step: 64-bit
// products of every address would be most of what a step does.
template <class C>
struct SparseLoader {
  using T = typename C::T;
  static constexpr int X_ROWS = C::THREADS / C::X_CHUNKS, W_ROWS = C::THREADS / C::W_CHUNKS;

  // The thread's first row and chunk in each tile of a step.
  int x_row = threadIdx.x / C::X_CHUNKS, x_chunk = threadIdx.x % C::X_CHUNKS;
  int w_row = threadIdx.x / C::W_CHUNKS, w_chunk = threadIdx.x % C::W_CHUNKS;
  int tile = threadIdx.x / C::KEPT_CHUNKS, kept_chunk = threadIdx.x % C::KEPT_CHUNKS;
  // Of the next step: what they hold, and how many inputs are left.
  const T *x, *w;
  const std::uint32_t* kept;
  int left;
  std::int64_t x_on;         // from a pass to the next
  int w_on, x_rows, w_rows;  // rows there are

  __device__ SparseLoader(const SparseLinear& p, std::int64_t first_m, int first_n, int step)
      : left(p.k - step * C::STEP),
        x_on(X_ROWS * p.x_stride),
        w_on(W_ROWS * (p.k / 2)),
        x_rows(static_cast<int>(min(std::int64_t{C::BM}, p.epilogue.m - first_m))),
        w_rows(static_cast<int>(min(std::int64_t{C::BN}, p.epilogue.n - first_n))) {
    const int k = step * C::STEP;
    x = static_cast<const T*>(p.x) + (first_m + x_row) * p.x_stride + k + x_chunk * 8;
    w = static_cast<const T*>(p.values) + (std::int64_t{first_n} + w_row) * (p.k / 2) + k / 2 +
        w_chunk * 8;
    kept = p.kept + (std::int64_t{first_n} / 16 + tile) * (p.k / 32) * 16 + k / 2 + kept_chunk * 4;
  }

  __device__ void load(uint4* stage) {
#pragma unroll
    for (int i = 0; i < C::X_TILE / C::THREADS; ++i)
      ptx::copy_async16(stage + swizzled<C::X_CHUNKS>(x_row + i * X_ROWS, x_chunk), x + i * x_on,
                        x_row + i * X_ROWS < x_rows && x_chunk * 8 < left);
#pragma unroll
    for (int i = 0; i < C::W_TILE / C::THREADS; ++i)
      ptx::copy_async16(stage + C::X_TILE + swizzled<C::W_CHUNKS>(w_row + i * W_ROWS, w_chunk),
                        w + i * w_on, w_row + i * W_ROWS < w_rows && w_chunk * 16 < left);
    if (threadIdx.x < C::KEPT_TILE)
      ptx::copy_async16(stage + C::X_TILE + C::W_TILE + threadIdx.x, kept,
                        tile * 16 < w_rows && kept_chunk / 4 * 32 < left);
    x += C::STEP;
    w += C::STEP / 2;
    kept += C::STEP / 2;
    left -= C::STEP;
  }
};

template <class C>
__global__ void __launch_bounds__(C::THREADS) sparse_product(SparseParameters s) {
  const SparseLinear& p = s.p;
  auto* memory = reinterpret_cast<uint4*>(ptx::dyn_smem<16>());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp % C::WM, wn = warp / C::WM % C::WN, wk = warp / (C::WM * C::WN);
  const int parts = max(1, s.cut.parts), part = blockIdx.x % parts;
  const std::int64_t tile_of_all = blockIdx.x / parts;
  const std::int64_t first_m = tile_of_all % s.cut.tiles_m * C::BM;
  const int first_n = static_cast<int>(tile_of_all / s.cut.tiles_m) * C::BN;
  const std::int64_t all = (p.k + C::STEP - 1) / C::STEP;
  const int begin = static_cast<int>(all * part / parts),
            end = static_cast<int>(all * (part + 1) / parts);

  float sum[C::NT][C::MT][4] = {};
  SparseLoader<C> loader(p, first_m, first_n, begin);
#pragma unroll
  for (int i = 0; i < C::STAGES - 1; ++i) {
    if (begin + i < end) loader.load(memory + i * C::STAGE);
    ptx::commit_copies();
  }
  int stage = 0;
  for (int step = begin; step < end; ++step) {
    ptx::wait_copies<C::STAGES - 2>();
    ptx::sync_block();
    if (step + C::STAGES - 1 < end)
      loader.load(memory + (stage ? stage - 1 : C::STAGES - 1) * C::STAGE);
    ptx::commit_copies();
    const uint4* x = memory + stage * C::STAGE;
    stage = stage + 1 < C::STAGES ? stage + 1 : 0;
    const uint4* w = x + C::X_TILE;
    const auto* kept = reinterpret_cast<const std::uint32_t*>(w + C::W_TILE);
#pragma unroll
    for (int i = 0; i < C::STEP / 32 / C::WK; ++i) {
      const int k = i * C::WK + wk;  // 32 inputs
      std::uint32_t b[C::MT][4];
#pragma unroll
      for (int mt = 0; mt < C::MT; ++mt)
        load_long<C::X_CHUNKS>(b[mt], x, (wm * C::MT + mt) * 8, k * 4);
#pragma unroll
      for (int nt = 0; nt < C::NT; ++nt) {
        const int tile = wn * C::NT + nt;
        std::uint32_t a[4];
        load_rows<C::W_CHUNKS>(a, w, tile * 16, k * 2);
        // Behind the ends of inputs and outputs zeros were copied: numbers, but no places.
        const std::uint32_t told = kept[(tile * (C::STEP / 32) + k) * 16 + lane / 4 * 2 + lane % 2],
                            places = told ? told : ANY_PLACES;
#pragma unroll
        for (int mt = 0; mt < C::MT; ++mt)
          ptx::multiply_sparse<typename C::T>(sum[nt][mt], a, b[mt], places);
      }
    }
  }
  // Every stage is read, every copy has landed.
  ptx::sync_block();
  auto* sums = reinterpret_cast<float*>(memory);  // [WK][BM][ROW]
#pragma unroll
  for (int nt = 0; nt < C::NT; ++nt)
#pragma unroll
    for (int mt = 0; mt < C::MT; ++mt)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = (wn * C::NT + nt) * 16 + lane / 4 + i / 2 * 8;
        const int m = (wm * C::MT + mt) * 8 + lane % 4 * 2 + i % 2;
        sums[(wk * C::BM + m) * C::ROW + n] = sum[nt][mt][i];
      }
  ptx::sync_block();
  for (int t = threadIdx.x; t < C::BM * C::BN / 8; t += C::THREADS) {
    const int m = t / (C::BN / 8), n = t % (C::BN / 8) * 8;
    if (first_m + m >= p.epilogue.m) break;
    float total[8] = {};
    add8<C::WK, C::BM, C::ROW>(total, sums, m, n);
    if (s.cut.parts) {
      store_part<C::BM, C::BN>(p.partial, m, n, total);
    } else {
      finish8<typename C::T>(p.epilogue, s.aligned, first_m + m, first_n + n, total);
    }
  }
}

template <class C>
void of_tile(const SparseParameters& s, const Launch& where) {
  static_assert(C::BN == tile_outputs(C::BM));
  const auto what = [&] {
    return s.p.text() + " as tiles of " + std::to_string(C::BM) + " rows, " +
           std::to_string(s.cut.parts) + " parts";
  };
  const auto grid = static_cast<unsigned>(tiles(s.p, s.cut));
  launch(sparse_product<C>, dim3(grid * max(1, s.cut.parts)), C::THREADS, C::BYTES, where, s, what);
  if (s.cut.parts)
    launch(finish_parts<typename C::T>, dim3(grid), 128, 0, where,
           Parts{s.p.epilogue, s.cut, C::BN, s.aligned, s.p.partial}, what);
}

template <class T, class Use>
void of_type(int bm, const Use& use) {
  if (bm == 16) {
    use(SparseTile<T, 16, 32, 256, 4, 1, 1, 4>{});
  } else if (bm == 64) {
    use(SparseTile<T, 64, 128, 64, 4, 2, 4, 1>{});
  } else {
    use(SparseTile<T, 128, 128, 64, 3, 2, 4, 1>{});
  }
}

// Calls `use` with a tile of bm rows for the problem.
template <class Use>
void with_tile(const SparseLinear& p, int bm, const Use& use) {
  p.dtype == Dtype::float16 ? of_type<ptx::Half>(bm, use) : of_type<ptx::BFloat>(bm, use);
}

}  // namespace

Cut cut(const SparseLinear& p, int device) {
  Cut cut = in_tiles(p.epilogue.m);
  constexpr int SHORTEST = 512;  // inputs that are worth a thread block
  with_tile(p, cut.bm, [&](auto tile) {
    using C = decltype(tile);
    const auto* kernel = reinterpret_cast<const void*>(&sparse_product<C>);
    cut.parts = parts(tiles(p, cut), tiles(p, cut), p.k / SHORTEST,
                      at_once(kernel, C::THREADS, C::BYTES, device));
  });
  return cut;
}

std::int64_t partial_sums(const SparseLinear& p, const Cut& cut) {
  return cut.parts * tiles(p, cut) * cut.bm * tile_outputs(cut.bm);
}

void sparse_linear(const SparseLinear& p, const Cut& cut, const Launch& where) {
  if (!p.epilogue.m || !p.epilogue.n) return;
  if (p.k % 32 || p.epilogue.n % 16)
    throw std::invalid_argument("expected n a multiple of 16 and k of 32, got " + p.text());
  const SparseParameters s{p, cut, p.epilogue.aligned()};
  with_tile(p, cut.bm, [&](auto tile) { of_tile<decltype(tile)>(s, where); });
}

}  // namespace secateurs::cuda
