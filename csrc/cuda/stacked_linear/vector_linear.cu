// Single inputs. Where there are many rows of x, an input is wanted as a run of memory: x is turned first.
#include "cuda/stacked_linear/stacked_launcher.cuh"

namespace secateurs::cuda {
namespace {

struct TurnParameters {
  const std::uint16_t* x;  // [m, k], rows x_stride apart
  std::int64_t x_stride;
  std::uint16_t* turned;  // [k, wide], wide >= m, zeros behind m
  std::int64_t m, wide;
  int k;
  bool aligned;  // rows of x, to 16 bytes
};

// Turns SIDE rows by SIDE inputs. The padding of a row, one word, spreads a column over the banks.
template <int SIDE>
__global__ void __launch_bounds__(256) turn_rows(TurnParameters p) {
  constexpr int CHUNKS = SIDE / 8, ROW = SIDE + 2;
  auto* tile = reinterpret_cast<std::uint16_t*>(ptx::dyn_smem<16>());
  const int across = (p.k + SIDE - 1) / SIDE;
  const std::int64_t first_m = blockIdx.x / across * std::int64_t{SIDE};
  const int first_k = static_cast<int>(blockIdx.x % across) * SIDE;
  for (int t = threadIdx.x; t < SIDE * CHUNKS; t += 256) {
    const int row = t / CHUNKS, k = t % CHUNKS * 8;
    const int count = first_m + row < p.m ? min(8, p.k - first_k - k) : 0;
    const std::uint16_t* from = p.x + (first_m + row) * p.x_stride + first_k + k;
    alignas(16) std::uint16_t numbers[8];
    if (p.aligned && count == 8) {
      *reinterpret_cast<uint4*>(numbers) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) numbers[i] = i < count ? from[i] : 0;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<std::uint32_t*>(tile)[(row * ROW + k) / 2 + i] =
          numbers[i * 2] | std::uint32_t{numbers[i * 2 + 1]} << 16;
  }
  ptx::sync_block();
  for (int t = threadIdx.x; t < SIDE * CHUNKS; t += 256) {
    const int k = t / CHUNKS, m = t % CHUNKS * 8;
    if (first_k + k >= p.k || first_m + m >= p.wide) continue;
    std::uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint16_t* pair = tile + (m + i * 2) * ROW + k;
      pairs[i] = pair[0] | std::uint32_t{pair[ROW]} << 16;
    }
    auto* to = reinterpret_cast<uint4*>(p.turned + (first_k + k) * p.wide) + (first_m + m) / 8;
    *to = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// The problem with x turned, [k, wide], in the first part of its working memory.
StackedLinear turned(StackedLinear p, const Cut& cut, const Launch& where) {
  constexpr int SIDE = 64;
  const std::int64_t wide = (p.epilogue.m + 7) / 8 * 8;
  auto* to = reinterpret_cast<std::uint16_t*>(p.partial);
  const bool aligned = (reinterpret_cast<std::uintptr_t>(p.x) | p.x_stride * 2) % 16 == 0;
  const std::int64_t tiles = (p.epilogue.m + SIDE - 1) / SIDE * ((p.k + SIDE - 1) / SIDE);
  const TurnParameters s{
      static_cast<const std::uint16_t*>(p.x), p.x_stride, to, p.epilogue.m, wide, p.k, aligned};
  if (tiles)
    launch(turn_rows<SIDE>, dim3(static_cast<unsigned>(tiles)), 256, SIDE * (SIDE + 2) * 2, where,
           s, [&] { return "vector_linear " + p.text() + ", to turn x"; });
  p.partial += turned_numbers(p, cut) / 2;
  p.x = to;
  p.x_stride = wide;
  return p;
}

}  // namespace

void vector_linear(const StackedLinear& p, const Cut& cut, const Launch& where) {
  if (!p.epilogue.m || !p.epilogue.n) return;
  StackedLauncher<true>(cut.bm == 16 ? p : turned(p, cut, where), cut, where).run();
}

std::int64_t vector_linear_at_once(const StackedLinear& p, int bm, int device) {
  return StackedLauncher<true>(p, {bm, 0, 0}, {device, nullptr}).at_once();
}

}  // namespace secateurs::cuda
