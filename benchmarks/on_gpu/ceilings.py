"""How fast a GPU reads its L2 cache and its shared memory: what bounds kernels that multiply."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Sums keep the compiler from leaving the reads out. Neighbouring threads read neighbouring 16
# bytes: whole lines of the cache, and no bank conflict.
SOURCE = """
extern "C" __global__ void read_l2(const float4* from, float* sums, int count, int rounds) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll 8
    for (int i = thread; i < count; i += gridDim.x * blockDim.x) {
      const float4 read = __ldcg(from + i);  // not by way of L1
      sum += read.x + read.y + read.z + read.w;
    }
  }
  sums[thread] = sum;
}

extern "C" __global__ void read_shared(float* sums, int rounds) {
  __shared__ float4 tile[2048];
  for (int i = threadIdx.x; i < 2048; i += blockDim.x) tile[i] = make_float4(i, i, i, i);
  __syncthreads();
  float sum = 0;
#pragma unroll 8
  for (int round = 0; round < rounds; ++round) {
    const float4 read = tile[(threadIdx.x + round * blockDim.x) % 2048];
    sum += read.x + read.y + read.z + read.w;
  }
  sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""
THREADS = 512
IN_L2 = 16 << 20  # bytes, which fit into either half of an H100's cache


def l2() -> tuple[Callable[[], None], int]:
    """Return a call that reads the L2 cache again and again, and how many bytes."""
    kernel = torch.cuda._compile_kernel(SOURCE, "read_l2")
    blocks, rounds = 2 * _multiprocessors(), 64
    cached = torch.zeros(IN_L2 // 4, device="cuda")
    sums = torch.empty(blocks * THREADS, device="cuda")
    arguments = [cached, sums, IN_L2 // 16, rounds]

    def call() -> None:
        kernel((blocks, 1, 1), (THREADS, 1, 1), arguments)

    return call, IN_L2 * rounds


def shared() -> tuple[Callable[[], None], int]:
    """Return a call that reads shared memory again and again, and how many bytes."""
    kernel = torch.cuda._compile_kernel(SOURCE, "read_shared")
    blocks, rounds = 4 * _multiprocessors(), 8192
    sums = torch.empty(blocks * THREADS, device="cuda")

    def call() -> None:
        kernel((blocks, 1, 1), (THREADS, 1, 1), [sums, rounds])

    return call, 16 * THREADS * blocks * rounds


def _multiprocessors() -> int:
    return torch.cuda.get_device_properties("cuda").multi_processor_count
