// How the work of a linear kernel is cut among thread blocks.
#pragma once

#include <algorithm>
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

// Into how many parts the inputs are cut, `most` at most, where `at_once` thread blocks can be under
// way, uncut tiles make `whole` and each part makes `each`. 0: uncut, since tiles fill three fifths of
// the GPU and the sums of parts would go through memory, or parts would be no more thread blocks.
inline int parts(std::int64_t whole, std::int64_t each, std::int64_t most, std::int64_t at_once) {
  if (whole * 10 >= at_once * 6) return 0;
  const std::int64_t fitting = std::min(at_once / std::max<std::int64_t>(1, each), most);
  return fitting * each > whole ? static_cast<int>(fitting) : 0;
}

}  // namespace secateurs::cuda
