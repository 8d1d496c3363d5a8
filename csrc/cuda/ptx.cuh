// Every hardware primitive the kernels use, one wrapper each. Nothing else holds assembly.
//
// nvcc compiles the functions below; any other compiler takes the same names from the emulator in
// tests/emulator, which runs the kernels on a CPU. Fragments are as the PTX manual lays them out.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#ifndef __CUDACC__
  #include <emulator/ptx.h>
#else

namespace secateurs::cuda::ptx {

using Half = __half;
using BFloat = __nv_bfloat16;

// The shared memory of the block, all of it dynamic.
template <int ALIGN>
__device__ inline unsigned char* dyn_smem() {
  extern __shared__ __align__(ALIGN) unsigned char memory[];
  return memory;
}

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void sync_block() { __syncthreads(); }

__device__ inline void sync_warp() { __syncwarp(); }

// Barrier ID of the `count` threads that name it; a constant ID, or ptxas reserves all sixteen.
template <int ID>
__device__ inline void sync_named(int count) {
  asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(count) : "memory");
}

// Starts a copy of `bytes`, and of zeros behind them up to 16; the rest of `global` is not read.
__device__ inline void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

// Starts a copy of 16 bytes, or of as many zeros where `live` is false: then `global` is not read.
__device__ inline void copy_async16(void* shared, const void* global, bool live) {
  copy_async(shared, global, live ? 16 : 0);
}

// Closes the group of the copies this thread has started.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the youngest PENDING groups of this thread are under way. Others see what it
// copied after a barrier.
template <int PENDING>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit numbers; lane l names row l % 8 of matrix l / 8.
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8].
template <class T>
__device__ inline void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d [16, 8] += a [16, 32] b [32, 8], a 2:4 sparse and stored as [16, 16]. `kept` holds two bits for
// each stored number, its place among four: lanes 4g and 4g + 1 hold inputs 0-15 and 16-31 of row g
// (low half) and row g + 8 (high half); those of the other lanes are not read. So says the PTX manual
// of mma.sp.m16n8k32 (its figure "metadata layout for .f16/.bf16 type", selector 0), and so LLVM's
// integration test sparse-mma-2-4-f16.mlir fills it for sm_80.
template <class T>
__device__ inline void multiply_sparse(float (&d)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[4], std::uint32_t kept) {
  if constexpr (std::is_same_v<T, BFloat>) {
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(kept));
  } else {
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(kept));
  }
}

__device__ inline float shuffle_xor(float x, int lanes) {
  return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// Bit l: what lane l says.
__device__ inline std::uint32_t ballot(bool mine) { return __ballot_sync(0xffffffffu, mine); }

__device__ inline int leading_zeros(int x) { return __clz(x); }

// 2^x, two units in the last place off at most; denormal results are zero.
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace secateurs::cuda::ptx

#endif
