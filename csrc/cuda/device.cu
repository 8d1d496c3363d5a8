#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/device.h"

namespace secateurs::cuda {

namespace {

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA failed while ") + doing + ": " +
                           cudaGetErrorString(status));
}

Version split(int version) { return {version / 1000, version % 1000 / 10}; }

}  // namespace

std::string toolkit() {
  return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + "." +
         std::to_string(__CUDACC_VER_BUILD__);
}

Version runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "asking for the runtime's version");
  return split(version);
}

Version driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "asking for the driver's version");
  return split(version);
}

std::vector<Device> devices() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting GPUs");
  std::vector<Device> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, i), "asking a GPU for its properties");
    devices.push_back({p.name, {p.major, p.minor}, p.multiProcessorCount, p.totalGlobalMem});
  }
  return devices;
}

}  // namespace secateurs::cuda
