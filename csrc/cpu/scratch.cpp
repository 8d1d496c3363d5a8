#include "cpu/scratch.h"

#include <new>

#if defined(__linux__)
  #include <sys/mman.h>
#endif

namespace secateurs::cpu {

namespace {

// Large buffers lie on large pages where the system has them: packed operands are walked in strides
// that would need a translation for every line.
constexpr std::size_t large_page = std::size_t{2} << 20;

struct Buffer {
  float* data = nullptr;
  std::size_t capacity = 0;

  std::align_val_t alignment() const {
    return std::align_val_t{capacity * sizeof(float) < large_page ? 64 : large_page};
  }
  void reserve(std::size_t count) {
    if (count <= capacity) return;
    release();
    std::size_t bytes = count * sizeof(float);
    if (bytes > large_page / 8) bytes = (bytes + large_page - 1) / large_page * large_page;
    capacity = bytes / sizeof(float);
    try {
      data = static_cast<float*>(::operator new(bytes, alignment()));
    } catch (...) {
      capacity = 0;
      throw;
    }
#if defined(MADV_HUGEPAGE)
    if (bytes >= large_page) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  }
  void release() {
    ::operator delete(data, alignment());
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
