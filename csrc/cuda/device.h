// What was compiled for CUDA, and which GPUs there are to run it.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace secateurs::cuda {

using Version = std::pair<int, int>;

struct Device {
  std::string name;
  Version capability;
  int multiprocessors;
  std::size_t memory;  // bytes
};

std::string toolkit();
Version runtime_version();
Version driver_version();
std::vector<Device> devices();

}  // namespace secateurs::cuda
