#include "cuda/stacked_linear/stacked_linear.h"

#include <algorithm>

namespace secateurs::cuda {

std::string StackedLinear::text() const {
  const auto number = [](std::int64_t n) { return std::to_string(n); };
  return "m=" + number(epilogue.m) + " n=" + number(epilogue.n) + " rows=" + number(rows) +
         " blocks=" + number(blocks) + " of " + number(bn) + "x" + number(bk);
}

Cut cut(const StackedLinear& p, int device) {
  Cut cut = in_tiles(p.epilogue.m);
  const auto at_once = p.bk == 1 ? vector_linear_at_once : block_sparse_linear_at_once;
  constexpr int SHORTEST = 256;  // inputs that are worth a thread block
  const std::int64_t most =
      std::min<std::int64_t>(std::int64_t{p.blocks} * p.bk / SHORTEST, p.blocks);
  cut.parts = parts(cut.tiles_m * p.rows, cut.tiles_m, most, at_once(p, cut.bm, device));
  return cut;
}

std::int64_t partial_sums(const StackedLinear& p, const Cut& cut) {
  return 2 * cut.parts * cut.tiles_m * cut.bm * p.bn + turned_numbers(p, cut) / 2;
}

std::int64_t turned_numbers(const StackedLinear& p, const Cut& cut) {
  return p.bk > 1 || cut.bm == 16 ? 0 : (p.epilogue.m + 7) / 8 * 8 * p.k;
}

}  // namespace secateurs::cuda
