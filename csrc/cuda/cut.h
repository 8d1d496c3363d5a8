// How the work of a linear kernel is cut among thread blocks.
#pragma once

#include <cstdint>

namespace secateurs::cuda {

// Tiles of bm rows of x, tiles_m of them. `parts` 0: a thread block does all inputs of a tile. Else
// the inputs are cut into as many parts, and a second kernel adds the pieces of a tile in order, so
// that the sums are the same each time.
struct Cut {
  int bm, parts;
  std::int64_t tiles_m;
};

// Tiles of 16 rows for few and of 128 for many, but of 64 where that saves a quarter of the work.
inline Cut in_tiles(std::int64_t m) {
  const int bm = m <= 16 ? 16 : m <= 64 || (m > 128 && m <= 192) ? 64 : 128;
  return {bm, 0, (m + bm - 1) / bm};
}

// Thread blocks that can be under way at once: by the shared memory their tiles take.
inline std::int64_t resident(const Cut& cut, int multiprocessors) {
  return (cut.bm == 16 ? 3 : 2) * std::int64_t{multiprocessors};
}

}  // namespace secateurs::cuda
