// Library patterns: what is read from memory is the compressed weight, expanded in shared memory into
// a dense tile that the tensor cores take. With few rows of x, that traffic is all that counts.
#include "cuda/library_linear/library_linear.h"

#include "cuda/epilogue.cuh"
#include "cuda/tile.cuh"

namespace secateurs::cuda {
namespace {

constexpr int BM = 16, BN = 32, STEP = 256, WARPS = 4, THREADS = WARPS * 32;
constexpr int CHUNKS = STEP / 8, X_TILE = BM * CHUNKS, W_TILE = BN * CHUNKS;  // of 16 bytes
constexpr int ROW = BN + 4;
constexpr int PATTERNS = 16, ONES = 256;
constexpr int BYTES = (2 * X_TILE + W_TILE) * 16 + PATTERNS * ONES * 2;
static_assert(WARPS * BM * ROW * 4 <= 2 * X_TILE * 16);

struct LibraryParameters {
  LibraryLinear p;
  bool aligned;
};

template <class T>
__device__ inline void load_x(const LibraryLinear& p, uint4* tile, int step) {
#pragma unroll
  for (int i = 0; i < X_TILE / THREADS; ++i) {
    const int t = threadIdx.x + i * THREADS, row = t / CHUNKS, chunk = t % CHUNKS;
    const int k = step * STEP + chunk * 8;
    ptx::copy_async16(tile + swizzled<CHUNKS>(row, chunk),
                      static_cast<const T*>(p.x) + row * p.x_stride + k,
                      row < p.epilogue.m && k < p.k);
  }
}

// Writes the entries of a step's blocks into the tile [BN][STEP], zero before. `places` says where in
// a block, row * STEP + column, each entry of each pattern stands.
template <class T>
__device__ inline void expand(const LibraryLinear& p, uint4* tile, const std::uint16_t* places,
                              int first_n, int step) {
  auto* numbers = reinterpret_cast<T*>(tile);
  const int across = p.k / p.q, first = step * STEP / p.q;  // blocks
  const int blocks = min(STEP / p.q, across - first), entries = blocks * p.ones;
  for (int t = threadIdx.x; t < BN / p.p * (entries / 8); t += THREADS) {
    const int row = t / (entries / 8), entry = t % (entries / 8) * 8;
    if (first_n + row * p.p >= p.epilogue.n) break;
    const std::int64_t begin = (std::int64_t{first_n} / p.p + row) * across + first;
    alignas(16) T group[8];
    *reinterpret_cast<uint4*>(group) =
        *reinterpret_cast<const uint4*>(static_cast<const T*>(p.values) + begin * p.ones + entry);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int block = (entry + i) / p.ones;
      const int place = places[p.codes[begin + block] * p.ones + (entry + i) % p.ones];
      const int n = row * p.p + place / STEP, k = block * p.q + place % STEP;
      numbers[swizzled<CHUNKS>(n, k / 8) * 8 + k % 8] = group[i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS) library_product(LibraryParameters s) {
  const LibraryLinear& p = s.p;
  auto* memory = reinterpret_cast<uint4*>(ptx::dyn_smem<16>());
  uint4* w = memory + 2 * X_TILE;
  auto* places = reinterpret_cast<std::uint16_t*>(w + W_TILE);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_n = blockIdx.x * BN, steps = (p.k + STEP - 1) / STEP;

  load_x<T>(p, memory, 0);
  ptx::commit_copies();
  if (const int l = threadIdx.x; l < p.patterns)
    for (int i = 0, entry = 0; i < p.p * p.q; ++i)
      if (p.library[l * p.p * p.q + i])
        places[l * p.ones + entry++] = static_cast<std::uint16_t>(i / p.q * STEP + i % p.q);

  float sum[BN / 8][4] = {};
  for (int step = 0; step < steps; ++step) {
    // The places are there; nobody reads the last step's tiles any more.
    ptx::sync_block();
    if (step + 1 < steps) load_x<T>(p, memory + (step + 1) % 2 * X_TILE, step + 1);
    ptx::commit_copies();
#pragma unroll
    for (int i = 0; i < W_TILE / THREADS; ++i) w[threadIdx.x + i * THREADS] = {0, 0, 0, 0};
    ptx::sync_block();
    expand<T>(p, w, places, first_n, step);
    ptx::wait_copies<1>();
    ptx::sync_block();
    const uint4* x = memory + step % 2 * X_TILE;
#pragma unroll
    for (int i = 0; i < STEP / 16 / WARPS; ++i) {
      const int chunk = (i * WARPS + warp) * 2;
      std::uint32_t a[4];
      load_rows<CHUNKS>(a, x, 0, chunk);
#pragma unroll
      for (int n = 0; n < BN / 16; ++n) {
        std::uint32_t b[4];
        ptx::load_matrices(
            b, w + swizzled<CHUNKS>(n * 16 + lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2));
        ptx::multiply<T>(sum[n * 2], a, b[0], b[1]);
        ptx::multiply<T>(sum[n * 2 + 1], a, b[2], b[3]);
      }
    }
  }
  ptx::wait_copies<0>();
  ptx::sync_block();
  auto* sums = reinterpret_cast<float*>(memory);  // [WARPS][BM][ROW]
#pragma unroll
  for (int n = 0; n < BN / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[(warp * BM + lane / 4 + i / 2 * 8) * ROW + n * 8 + lane % 4 * 2 + i % 2] = sum[n][i];
  ptx::sync_block();
  for (int t = threadIdx.x; t < BM * BN / 8; t += THREADS) {
    const int m = t / (BN / 8), n = t % (BN / 8) * 8;
    float total[8] = {};
    add8<WARPS, BM, ROW>(total, sums, m, n);
    finish8<T>(p.epilogue, s.aligned, m, first_n + n, total);
  }
}

template <class T>
void of_type(const LibraryLinear& p, const Launch& where) {
  const auto tiles = static_cast<unsigned>((p.epilogue.n + BN - 1) / BN);
  launch(library_product<T>, dim3(tiles), THREADS, BYTES, where,
         LibraryParameters{p, p.epilogue.aligned()}, [&] { return p.text(); });
}

}  // namespace

void library_linear(const LibraryLinear& p, const Launch& where) {
  if (!p.epilogue.m || !p.epilogue.n) return;
  if (p.epilogue.m > BM || BN % p.p || STEP % p.q || p.patterns > PATTERNS || p.ones > ONES ||
      p.k % 8 || p.k / p.q * p.ones % 8 || STEP / p.q * p.ones % 8)
    throw std::invalid_argument("expected a problem the kernel takes, got " + p.text());
  p.dtype == Dtype::float16 ? of_type<ptx::Half>(p, where) : of_type<ptx::BFloat>(p, where);
}

}  // namespace secateurs::cuda
