#include "cuda/stacked_linear/stacked_launcher.cuh"

namespace secateurs::cuda {

void block_sparse_linear(const StackedLinear& p, const Cut& cut, const Launch& where) {
  StackedLauncher<false>(p, cut, where).run();
}

std::int64_t block_sparse_linear_at_once(const StackedLinear& p, int bm, int device) {
  return StackedLauncher<false>(p, {bm, 0, 0}, {device, nullptr}).at_once();
}

}  // namespace secateurs::cuda
