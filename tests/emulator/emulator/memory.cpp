#include "emulator/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>

#include "emulator/machine.h"
#include "emulator/unseen.h"

namespace emulator {
namespace {

constexpr unsigned char POISON = 0xff;  // NaN in every format
constexpr unsigned char CANARY = 0xa5;
constexpr std::size_t SHARED = 228 << 10;
constexpr std::size_t SLACK = 1 << 10;  // for the alignment of shared memory

std::size_t page() { return sysconf(_SC_PAGESIZE); }

unsigned char* guarded(std::size_t bytes) {  // whole pages, one guard page on either side
  void* region = mmap(nullptr, bytes + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) throw std::bad_alloc();
  auto* inside = static_cast<unsigned char*>(region) + page();
  if (bytes) mprotect(inside, bytes, PROT_READ | PROT_WRITE);
  return inside;
}

bool intact(const unsigned char* from, const unsigned char* to) {
  return std::all_of(from, to, [](unsigned char c) { return c == CANARY; });
}

std::map<const unsigned char*, const DeviceMemory*> allocations;  // by first byte

}  // namespace

DeviceMemory::DeviceMemory(std::size_t bytes) : bytes_(bytes) {
  mapped_ = (bytes + page()) / page() * page();
  region_ = guarded(mapped_);
  data_ = region_ + (mapped_ - bytes) / 16 * 16;  // torch and cudaMalloc align better, views do not
  std::memset(region_, CANARY, mapped_);
  std::memset(data_, POISON, bytes);
  allocations[data_] = this;
}

DeviceMemory::~DeviceMemory() {
  allocations.erase(data_);
  munmap(region_ - page(), mapped_ + 2 * page());
}

bool on_device(const void* p, std::size_t bytes) {
  if (allocations.empty()) return true;
  const auto* from = static_cast<const unsigned char*>(p);
  auto after = allocations.upper_bound(from);
  if (after == allocations.begin()) return false;
  const auto& [data, memory] = *--after;
  return from + bytes <= data + memory->size();
}

std::string device_memory_damage() {
  for (const auto& [data, memory] : allocations) {
    const auto first = reinterpret_cast<std::uintptr_t>(data) / page() * page();
    const auto last = reinterpret_cast<std::uintptr_t>(data + memory->size() + page() - 1) / page();
    if (!intact(reinterpret_cast<const unsigned char*>(first), data) ||
        !intact(data + memory->size(), reinterpret_cast<const unsigned char*>(last * page())))
      return "bytes around an array in global memory were written";
  }
  return {};
}

SharedMemory::SharedMemory() {
  const std::size_t bytes = (SHARED + 2 * SLACK + page() - 1) / page() * page();
  begin_ = guarded(bytes);
  end_ = begin_ + bytes;
}

void SharedMemory::reset(std::size_t bytes) {
  bytes_ = bytes;
  base_ = nullptr;
}

unsigned char* SharedMemory::base(std::size_t alignment) {
  const Unseen unseen;
  if (!base_) {
    auto last = reinterpret_cast<std::uintptr_t>(end_ - bytes_) / alignment * alignment;
    if (last % (2 * alignment) == 0) last -= alignment;
    base_ = reinterpret_cast<unsigned char*>(last);
    alignment_ = alignment;
    std::memset(base_ - SLACK, CANARY, SLACK);
    std::memset(base_, POISON, bytes_);
    std::memset(base_ + bytes_, CANARY, end_ - base_ - bytes_);
  } else if (alignment != alignment_) {
    fail("shared memory aligned to " + std::to_string(alignment) + " and to " +
         std::to_string(alignment_));
  }
  return base_;
}

bool SharedMemory::holds(const void* p, std::size_t bytes) const {
  const auto* from = static_cast<const unsigned char*>(p);
  return base_ && from >= base_ && from + bytes <= base_ + bytes_;
}

std::string SharedMemory::damage() const {
  if (base_ && !(intact(base_ - SLACK, base_) && intact(base_ + bytes_, end_)))
    return "bytes around the block's " + std::to_string(bytes_) + " of shared memory were written";
  return {};
}

SharedMemory& shared_memory() {
  static SharedMemory memory;
  return memory;
}

}  // namespace emulator
