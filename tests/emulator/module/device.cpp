// csrc/cuda/device.h for a module whose kernels run on CPU tensors.
#include "cuda/device.h"

namespace secateurs::cuda {

std::string toolkit() { return "emulator"; }
Version runtime_version() { return {0, 0}; }
Version driver_version() { return {0, 0}; }
std::vector<Device> devices() { return {}; }

}  // namespace secateurs::cuda
