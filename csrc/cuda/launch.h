// Launching a kernel: the one way, with errors that say what was launched.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

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

// `what` is a sentence's worth of kernel, Problem and Config, asked for only if it fails.
template <class Parameters, class What>
void launch(void (*kernel)(Parameters), dim3 grid, int threads, int shared_bytes,
            const Launch& where, const Parameters& parameters, const What& what) {
  if (shared_bytes > 48 << 10)
    if (const auto status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
        status != cudaSuccess)
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
