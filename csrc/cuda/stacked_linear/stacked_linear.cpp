#include "cuda/stacked_linear/stacked_linear.h"

#include <algorithm>

namespace secateurs::cuda {

std::string StackedLinear::text() const {
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  return "m=" + number(epilogue.m) + " n=" + number(epilogue.n) + " rows=" + number(rows) +
         " blocks=" + number(blocks) + " of " + number(bn) + "x" + number(bk);
}

Cut cut(const StackedLinear& p, int multiprocessors) {
  Cut cut = in_tiles(p.epilogue.m);
  const std::int64_t at_once = resident(cut, multiprocessors);
  // Two rounds of tiles even out by themselves.
  if (cut.tiles_m * p.rows >= 2 * at_once) return cut;
  constexpr int SHORTEST = 256;  // inputs that are worth a thread block
  const std::int64_t parts = std::min<std::int64_t>(
      {at_once / cut.tiles_m, std::int64_t{p.blocks} * p.bk / SHORTEST, p.blocks});
  if (parts > 1) cut.parts = static_cast<int>(parts);
  return cut;
}

std::int64_t partial_sums(const StackedLinear& p, const Cut& cut) {
  return 2 * cut.parts * cut.tiles_m * cut.bm * p.bn;
}

}  // namespace secateurs::cuda
