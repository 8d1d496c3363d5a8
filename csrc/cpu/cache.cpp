#include "cpu/cache.h"

#include <unistd.h>

namespace secateurs::cpu {

std::int64_t l2_bytes() {
  static const std::int64_t bytes = [] {
    long told = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    told = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::int64_t{told > 0 ? told : 1 << 20};
  }();
  return bytes;
}

}  // namespace secateurs::cpu
