// The threads of a parallel region: what they throw, and how they share out numbered items.
//
// Each thread begins with a part of its own, the same part in every call: what one kernel writes,
// the next one finds in its own cache, which is several times as fast as another core's. Who is done
// helps the others.
#pragma once

#ifdef _OPENMP
  #include <omp.h>
#endif

#include "cpu/failure.h"
#include "cpu/kernels/arithmetic.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

// The calling thread among those of its region, and how many they are.
inline int64_t thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
inline int64_t team() {
#ifdef _OPENMP
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// Runs work() in every thread of a parallel region, and throws what any of them threw. Who throws
// is gone: before a barrier, the end of a shared loop among them, work() may not.
template <class Work>
inline void in_parallel([[maybe_unused]] int threads, const Work& work) {
  Failure failure;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    try {
      work();
    } catch (...) {
      failure.keep();
    }
  }
  failure.rethrow();
}

class SharedItems {
 public:
  SharedItems(int64_t items, int threads) : items(items), parts(clamp(threads, 1, most_parts)) {
    for (int64_t part = 0; part < parts; ++part) next[part].item = cut(items, parts, part);
  }

  // To be called by every thread of the region: each item is visited once, by one of them.
  template <class Visit>
  void visit(const Visit& visit) {
    const int64_t own = thread() % parts;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t part = (own + i) % parts, end = cut(items, parts, part + 1);
      int64_t item;
      while ((item = __atomic_fetch_add(&next[part].item, 1, __ATOMIC_RELAXED)) < end) visit(item);
    }
  }

 private:
  static constexpr int64_t most_parts = 64;

  struct alignas(64) Counter {
    int64_t item;
  };

  int64_t items, parts;
  Counter next[most_parts];
};

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
