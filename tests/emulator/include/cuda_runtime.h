// The few names of CUDA's runtime that the kernels and their launches use, on the CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "emulator/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ only_through_dyn_smem

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

using cudaStream_t = struct Stream*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

namespace emulator {
inline int multiprocessors = 4;
inline constexpr int SHARED_MEMORY = 99 << 10;  // of the smallest GPU the kernels are for
inline constexpr int DEVICES = 2;               // that differ in nothing
inline int device = 0;
inline std::map<const void*, int> allowed_shared_memory[DEVICES];
inline int times_allowed = 0;
inline std::set<const void*> launched;  // the kernels, every instance by itself
}  // namespace emulator

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulator::device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulator::DEVICES) return cudaErrorInvalidValue;
  return emulator::device = device, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value =
      which == cudaDevAttrMultiProcessorCount ? emulator::multiprocessors : emulator::SHARED_MEMORY;
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulator::SHARED_MEMORY) return cudaErrorInvalidValue;
  ++emulator::times_allowed;
  emulator::allowed_shared_memory[emulator::device][kernel] = bytes;
  return cudaSuccess;
}

namespace emulator {
inline std::size_t allowed(const void* kernel) {
  const auto said = allowed_shared_memory[device].find(kernel);
  const bool none = said == allowed_shared_memory[device].end();
  return max<std::size_t>(none ? 0 : said->second, 48 << 10);
}
}  // namespace emulator

// Of a multiprocessor with the threads and the shared memory of the smallest GPU, 1 KiB of it kept for
// each thread block; nobody knows of registers here.
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                                 int threads, std::size_t shared) {
  if (threads < 1 || threads > 1024 || shared > emulator::allowed(kernel))
    return cudaErrorInvalidValue;
  *blocks = min(1536 / threads, static_cast<int>((100 << 10) / (shared + (1 << 10))));
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const std::size_t threads = std::size_t{1} * block.x * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || !threads ||
      threads > 1024 ||
      config->dynamicSmemBytes > emulator::allowed(reinterpret_cast<const void*>(kernel)))
    return cudaErrorInvalidConfiguration;
  if (threads % 32) throw std::runtime_error("launch of a fraction of a warp");
  emulator::launched.insert(reinterpret_cast<const void*>(kernel));
  emulator::run(grid, block, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
