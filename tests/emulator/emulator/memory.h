// Hostile memory: filled with NaN before use, guard pages behind (and before) it, canaries in what
// is left between.
#pragma once

#include <cstddef>
#include <string>

namespace emulator {

// Global memory for a kernel to use; it ends at a guard page.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return bytes_; }

 private:
  unsigned char *region_, *data_;
  std::size_t mapped_, bytes_;
};

// Whether bytes from p on lie in one DeviceMemory; true for all where there is none (the kernels
// then run on memory of somebody else).
bool on_device(const void* p, std::size_t bytes);
// What is wrong with the canaries around device memory; empty: nothing.
std::string device_memory_damage();

class SharedMemory {
 public:
  SharedMemory();
  void reset(std::size_t bytes);
  // The first byte: aligned as asked and no better.
  unsigned char* base(std::size_t alignment);
  bool holds(const void* p, std::size_t bytes) const;
  std::string damage() const;

 private:
  unsigned char *begin_, *end_, *base_ = nullptr;
  std::size_t bytes_ = 0, alignment_ = 0;
};

SharedMemory& shared_memory();

}  // namespace emulator
