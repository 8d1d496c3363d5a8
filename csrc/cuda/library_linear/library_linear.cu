// Library patterns: what is read from memory is the compressed weight, expanded in shared memory into
// a dense tile that the tensor cores take. With few rows of x, that traffic is all that counts.
//
// Sides of blocks are powers of two, so that bits tell a row and a column within a block from those of
// the block, and a tile's place of an entry is the exclusive or of both.
#include "cuda/library_linear/library_linear.h"

#include "cuda/parts.cuh"
#include "cuda/tile.cuh"

namespace secateurs::cuda {
namespace {

constexpr int BM = 16, BN = 32, STEP = 256, WARPS = 4, THREADS = WARPS * 32;
constexpr int CHUNKS = STEP / 8, X_TILE = BM * CHUNKS, W_TILE = BN * CHUNKS;  // of 16 bytes
constexpr int ROW = BN + 4;
constexpr int PATTERNS = 16, ONES = 256;
constexpr int LOG_DIVISOR = 22;
static_assert(WARPS * BM * ROW * 4 <= 2 * X_TILE * 16);

struct LibraryParameters {
  LibraryLinear p;
  Cut cut;
  bool aligned;
  int log_p, log_q;
  int across;        // blocks side by side
  int groups;        // of eight entries in a step's blocks side by side
  int windows;       // of 16 codes that hold theirs, wherever they begin
  int inverse_ones;  // times an entry of a step >> LOG_DIVISOR: in which of its blocks

  LibraryParameters(const LibraryLinear& p, const Cut& cut)
      : p(p), cut(cut), aligned(p.epilogue.aligned()), log_p(0), log_q(0), across(p.k / p.q) {
    while (1 << log_p < p.p) ++log_p;
    while (1 << log_q < p.q) ++log_q;
    groups = STEP / p.q * p.ones / 8;
    windows = (STEP / p.q + 14) / 16 + 1;
    inverse_ones = ((1 << LOG_DIVISOR) + p.ones - 1) / p.ones;
  }

  // Chunks of what is copied for a step: x, the entries, the codes.
  __host__ __device__ int stage() const { return X_TILE + (BN >> log_p) * (groups + windows); }
  int bytes() const { return (2 * stage() + W_TILE) * 16 + p.patterns * p.ones * 2; }
};

// At which byte row n and column k of the tile [BN][STEP] stand, as `swizzled` has it.
__device__ inline int place(int n, int k) { return ((n * STEP + k) ^ (n % 8 * 8)) * 2; }

// The cells of a table `width` wide that are a thread's, one by one.
struct Walk {
  int row, column, cell, width, rows_on, columns_on;

  __device__ explicit Walk(int width)
      : row(threadIdx.x / width),
        column(threadIdx.x % width),
        cell(threadIdx.x),
        width(width),
        rows_on(THREADS / width),
        columns_on(THREADS % width) {}
  __device__ void next() {
    cell += THREADS;
    row += rows_on;
    column += columns_on;
    if (column >= width) {
      column -= width;
      ++row;
    }
  }
};

// What brings the steps of a tile's first output on, and expands them.
template <class T>
struct LibraryLoader {
  const LibraryParameters& s;
  int first_n, rows;     // rows of blocks
  Walk groups, windows;  // where they begin
  std::int64_t before;   // blocks before the tile's
  const T *x, *values;   // of the thread's first row and chunk, of the tile

  __device__ LibraryLoader(const LibraryParameters& s, int first_n)
      : s(s),
        first_n(first_n),
        rows(static_cast<int>(min(std::int64_t{BN}, s.p.epilogue.n - first_n)) >> s.log_p),
        groups(s.groups),
        windows(s.windows),
        before((std::int64_t{first_n} >> s.log_p) * s.across),
        x(static_cast<const T*>(s.p.x) + threadIdx.x / CHUNKS * s.p.x_stride +
          threadIdx.x % CHUNKS * 8),
        values(static_cast<const T*>(s.p.values) + before * s.p.ones) {}

  __device__ int first_block(int step) const { return step * STEP >> s.log_q; }

  // Entries of a row of blocks in a step.
  __device__ int entries(int step) const {
    return min(STEP >> s.log_q, s.across - first_block(step)) * s.p.ones;
  }

  __device__ void load(uint4* stage, int step) const {
    constexpr int ROWS_ON = THREADS / CHUNKS;
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const bool inside = step * STEP + chunk * 8 < s.p.k;
#pragma unroll
    for (int i = 0; i < X_TILE / THREADS; ++i)
      ptx::copy_async16(stage + swizzled<CHUNKS>(row + i * ROWS_ON, chunk),
                        x + step * STEP + i * ROWS_ON * s.p.x_stride,
                        inside && row + i * ROWS_ON < s.p.epilogue.m);
    stage += X_TILE;
    const int first = first_block(step), count = entries(step), row_entries = s.across * s.p.ones;
    const T* from = values + first * s.p.ones;
    for (Walk at = groups; at.row < rows; at.next())
      if (at.column * 8 < count)
        ptx::copy_async16(stage + at.cell, from + at.row * row_entries + at.column * 8, true);
    stage += (BN >> s.log_p) * s.groups;
    const std::int64_t all = (s.p.epilogue.n >> s.log_p) * s.across;
    for (Walk at = windows; at.row < rows; at.next()) {
      const std::int64_t begin = (before + at.row * s.across + first) / 16 * 16 + at.column * 16;
      if (begin < all)
        ptx::copy_async(stage + at.cell, s.p.codes + begin,
                        static_cast<int>(min(std::int64_t{16}, all - begin)));
    }
  }

  // Writes the entries of a step into the tile [BN][STEP], zero before. `places` says where in a
  // block each entry of each pattern stands.
  __device__ void expand(uint4* w, const std::uint16_t* places, const uint4* stage,
                         int step) const {
    const int first = first_block(step), count = entries(step), ones = s.p.ones;
    auto* tile = reinterpret_cast<unsigned char*>(w);
    const uint4* values = stage + X_TILE;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(values + (BN >> s.log_p) * s.groups);
    for (Walk at = groups; at.row < rows; at.next()) {
      const int entry = at.column * 8;
      if (entry >= count) continue;
      alignas(16) T group[8];
      *reinterpret_cast<uint4*>(group) = values[at.cell];
      const int block = entry * s.inverse_ones >> LOG_DIVISOR;
      int within = entry - block * ones, block_place = place(0, block << s.log_q);
      const int begin = static_cast<int>((before + at.row * s.across + first) % 16);
      const std::uint8_t* code = codes + at.row * s.windows * 16 + begin + block;
      const std::uint16_t* pattern = places + *code * ones;
      const int row_place = place(at.row << s.log_p, 0);
      int to[8];  // all before the first is stored: none waits for another
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (within == ones) {
          within = 0;
          block_place += place(0, s.p.q);
          pattern = places + *++code * ones;
        }
        to[i] = row_place ^ block_place ^ pattern[within++];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) *reinterpret_cast<T*>(tile + to[i]) = group[i];
    }
  }
};

// Notes where the ones of each pattern stand. Threads share a pattern, and must know how many ones
// those before them have: `counts` is as many numbers as threads.
__device__ inline void find_places(const LibraryParameters& s, std::uint16_t* places, int* counts) {
  constexpr int SHARES = THREADS / PATTERNS;
  const int pattern = threadIdx.x / SHARES, share = threadIdx.x % SHARES;
  const int area = s.p.p << s.log_q, begin = area * share / SHARES,
            end = pattern < s.p.patterns ? area * (share + 1) / SHARES : begin;
  const bool* library = s.p.library + pattern * area;
  int count = 0;
  for (int i = begin; i < end; ++i) count += library[i];
  counts[threadIdx.x] = count;
  ptx::sync_block();
  int entry = pattern * s.p.ones;
  for (int i = 0; i < share; ++i) entry += counts[pattern * SHARES + i];
  for (int i = begin; i < end; ++i)
    if (library[i])
      places[entry++] = static_cast<std::uint16_t>(place(i >> s.log_q, i & (s.p.q - 1)));
}

template <class T>
__global__ void __launch_bounds__(THREADS) library_product(LibraryParameters s) {
  auto* memory = reinterpret_cast<uint4*>(ptx::dyn_smem<16>());
  const int stage = s.stage();
  uint4* w = memory + 2 * stage;
  auto* places = reinterpret_cast<std::uint16_t*>(w + W_TILE);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int parts = max(1, s.cut.parts), part = blockIdx.x % parts;
  const int first_n = blockIdx.x / parts * BN;
  const std::int64_t all = (s.p.k + STEP - 1) / STEP;
  const int begin = static_cast<int>(all * part / parts),
            end = static_cast<int>(all * (part + 1) / parts);

  const LibraryLoader<T> loader(s, first_n);
  if (begin < end) loader.load(memory + begin % 2 * stage, begin);
  ptx::commit_copies();
  find_places(s, places, reinterpret_cast<int*>(w));

  float sum[BN / 8][4] = {};
  for (int step = begin; step < end; ++step) {
    ptx::wait_copies<0>();
    // The step and the places are there for all; nobody reads the last step's tiles any more.
    ptx::sync_block();
    if (step + 1 < end) loader.load(memory + (step + 1) % 2 * stage, step + 1);
    ptx::commit_copies();
#pragma unroll
    for (int i = 0; i < W_TILE / THREADS; ++i) w[threadIdx.x + i * THREADS] = {0, 0, 0, 0};
    ptx::sync_block();
    const uint4* x = memory + step % 2 * stage;
    loader.expand(w, places, x, step);
    ptx::sync_block();
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
  // Every stage is read, every copy has landed.
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
    if (m >= s.p.epilogue.m) break;
    float total[8] = {};
    add8<WARPS, BM, ROW>(total, sums, m, n);
    if (s.cut.parts) {
      store_part<BM, BN>(s.p.partial, m, n, total);
    } else {
      finish8<T>(s.p.epilogue, s.aligned, m, first_n + n, total);
    }
  }
}

std::int64_t tiles(const LibraryLinear& p) { return (p.epilogue.n + BN - 1) / BN; }

void must_take(const LibraryLinear& p) {
  if (p.p < 1 || p.q < 1 || p.ones < 1 || p.epilogue.m > BM || BN % p.p || STEP % p.q ||
      p.patterns > PATTERNS || p.ones > ONES || p.k % 8 || p.k / p.q * p.ones % 8 ||
      STEP / p.q * p.ones % 8)
    throw std::invalid_argument("expected a problem the kernel takes, got " + p.text());
}

template <class T>
void of_type(const LibraryParameters& s, const Launch& where) {
  const auto what = [&] { return s.p.text() + ", " + std::to_string(s.cut.parts) + " parts"; };
  const auto grid = static_cast<unsigned>(tiles(s.p));
  launch(library_product<T>, dim3(grid * max(1, s.cut.parts)), THREADS, s.bytes(), where, s, what);
  if (s.cut.parts)
    launch(finish_parts<T>, dim3(grid), 128, 0, where,
           Parts{s.p.epilogue, s.cut, BN, s.aligned, s.p.partial}, what);
}

}  // namespace

Cut cut(const LibraryLinear& p, int device) {
  must_take(p);
  Cut cut{BM, 0, 1};
  constexpr int SHORTEST = 512;  // inputs that are worth a thread block
  const auto* kernel = p.dtype == Dtype::float16
                           ? reinterpret_cast<const void*>(&library_product<ptx::Half>)
                           : reinterpret_cast<const void*>(&library_product<ptx::BFloat>);
  cut.parts = parts(tiles(p), tiles(p), p.k / SHORTEST,
                    at_once(kernel, THREADS, LibraryParameters(p, cut).bytes(), device));
  return cut;
}

std::int64_t partial_sums(const LibraryLinear& p, const Cut& cut) {
  return cut.parts * tiles(p) * BM * BN;
}

void library_linear(const LibraryLinear& p, const Cut& cut, const Launch& where) {
  if (!p.epilogue.m || !p.epilogue.n) return;
  must_take(p);
  const LibraryParameters s(p, cut);
  p.dtype == Dtype::float16 ? of_type<ptx::Half>(s, where) : of_type<ptx::BFloat>(s, where);
}

}  // namespace secateurs::cuda
