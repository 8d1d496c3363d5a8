// A thread block owns a row: it is read once, kept in shared memory as float, and written once.
#include "cuda/add_norm/add_norm.h"

#include "cuda/number.cuh"

namespace secateurs::cuda {
namespace {

constexpr int WARPS = 8;  // at most

struct NormParameters {
  AddNorm p;
  bool aligned;
};

// The sum over all threads of the block, in the same order each time. `partial`: a float for each
// warp, of this sum alone.
__device__ inline float sum_of_block(float x, float* partial) {
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) x += ptx::shuffle_xor(x, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  ptx::sync_block();
  float sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) sum += partial[warp];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(WARPS * 32) add_norm_row(NormParameters s) {
  const AddNorm& p = s.p;
  auto* partial = reinterpret_cast<float*>(ptx::dyn_smem<16>());  // of two sums
  float* row = partial + 2 * WARPS;
  const std::int64_t at = blockIdx.x * std::int64_t{p.width};
  const int first = threadIdx.x * 8, step = blockDim.x * 8;

  float sum = 0;
  for (int i = first; i < p.width; i += step) {
    const int count = min(8, p.width - i);
    float h[8], residual[8] = {};
    load8(h, static_cast<const T*>(p.x) + at + i, count, s.aligned);
    if (p.residual) load8(residual, static_cast<const T*>(p.residual) + at + i, count, s.aligned);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      h[j] += residual[j];
      sum += h[j];  // zeros behind the end
    }
    if (p.sum) store8(static_cast<T*>(p.sum) + at + i, h, count, s.aligned);
    store8(row + i, h, count, true);
  }
  const float mean = p.rms ? 0.f : sum_of_block(sum, partial) / p.width;
  float square = 0;
  for (int i = first; i < p.width; i += step)
    for (int j = i; j < min(i + 8, p.width); ++j) square += (row[j] - mean) * (row[j] - mean);
  const float scale = 1 / sqrtf(sum_of_block(square, partial + WARPS) / p.width + p.eps);

  for (int i = first; i < p.width; i += step) {
    const int count = min(8, p.width - i);
    float y[8], weight[8], bias[8] = {};
    load8(y, row + i, count, true);
    load8(weight, static_cast<const T*>(p.weight) + i, count, s.aligned);
    if (p.bias) load8(bias, static_cast<const T*>(p.bias) + i, count, s.aligned);
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = (y[j] - mean) * scale * weight[j] + bias[j];
    store8(static_cast<T*>(p.y) + at + i, y, count, s.aligned);
  }
}

template <class T>
void of_type(const AddNorm& p, const Launch& where) {
  std::uintptr_t bits = p.width * sizeof(T);
  for (const void* array : {p.x, p.residual, p.weight, p.bias, static_cast<const void*>(p.sum),
                            static_cast<const void*>(p.y)})
    bits |= reinterpret_cast<std::uintptr_t>(array);
  const int warps = min(WARPS, (p.width + 255) / 256), bytes = (2 * WARPS + p.width) * 4;
  launch(add_norm_row<T>, dim3(static_cast<unsigned>(p.rows)), warps * 32, bytes, where,
         NormParameters{p, bits % 16 == 0}, [&] { return p.text(); });
}

}  // namespace

void add_norm(const AddNorm& p, const Launch& where) {
  if (!p.rows || !p.width) return;
  if (p.width > WIDEST_NORM)
    throw std::invalid_argument("expected rows of at most " + std::to_string(WIDEST_NORM) +
                                ", got " + p.text());
  switch (p.dtype) {
    case Dtype::float16:
      return of_type<ptx::Half>(p, where);
    case Dtype::bfloat16:
      return of_type<ptx::BFloat>(p, where);
    case Dtype::float32:
      return of_type<float>(p, where);
  }
}

}  // namespace secateurs::cuda
