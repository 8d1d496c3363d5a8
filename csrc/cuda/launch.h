// Launching a kernel: the one way, with errors that say what was launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/dtype.h"

namespace secateurs::cuda {

inline void check(cudaError_t status, const std::string& doing) {
  if (status != cudaSuccess)
    throw std::runtime_error("CUDA failed while " + doing + ": " + cudaGetErrorString(status));
}

// Makes `device` the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the current GPU");
    if (device != before_) check(cudaSetDevice(device), "switching GPUs");
    switched_ = device != before_;
  }
  ~OnDevice() {
    if (switched_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool switched_ = false;
};

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "counting multiprocessors");
  return count;
}

struct Launch {
  int device;
  cudaStream_t stream;
};

// A kernel may have 48 KiB of shared memory, and more where that is said before, on each device. Said
// once, not before each launch; what is said last counts, so never less than before.
inline cudaError_t reserve(const void* kernel, int shared_bytes, int device) {
  if (shared_bytes <= 48 << 10) return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int>, int> reserved;
  const std::lock_guard<std::mutex> lock(mutex);
  int& most = reserved[{kernel, device}];
  if (shared_bytes <= most) return cudaSuccess;
  const auto status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status == cudaSuccess) most = shared_bytes;
  return status;
}

// Thread blocks of a kernel that can be under way at once on `device`, the current GPU. CUDA is asked
// once: that takes as long as a launch.
inline std::int64_t at_once(const void* kernel, int threads, int shared_bytes, int device) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, int>, std::int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple key(kernel, threads, shared_bytes, device);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  check(reserve(kernel, shared_bytes, device), "reserving shared memory");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "asking how many thread blocks fit a multiprocessor");
  return known[key] = std::int64_t{blocks} * multiprocessors(device);
}

// Launches a kernel on `where.device`, the current GPU. `what` is a sentence's worth of kernel, Problem
// and Config, asked for only if it fails.
template <class Parameters, class What>
void launch(void (*kernel)(Parameters), dim3 grid, int threads, int shared_bytes,
            const Launch& where, const Parameters& parameters, const What& what) {
  const auto* named = reinterpret_cast<const void*>(kernel);
  if (const auto status = reserve(named, shared_bytes, where.device); status != cudaSuccess)
    check(status, "reserving shared memory for " + what());
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = where.stream;
  if (const auto status = cudaLaunchKernelEx(&config, kernel, parameters); status != cudaSuccess)
    check(status, "launching " + what());
}

}  // namespace secateurs::cuda
