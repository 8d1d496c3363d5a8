#include "cpu/scratch.h"

#include <new>

namespace secateurs::cpu {

namespace {

struct Buffer {
  float* data = nullptr;
  std::size_t capacity = 0;

  void reserve(std::size_t count) {
    if (count <= capacity) return;
    release();
    data = static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}));
    capacity = count;
  }
  void release() {
    ::operator delete(data, std::align_val_t{64});
    data = nullptr;
    capacity = 0;
  }
  ~Buffer() { release(); }
};

}  // namespace

float* scratch(int slot, std::size_t count) {
  thread_local Buffer buffers[scratch_slots];
  buffers[slot].reserve(count);
  return buffers[slot].data;
}

}  // namespace secateurs::cpu
