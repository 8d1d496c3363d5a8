#include "cuda/stacked_linear/stacked_linear.cuh"

namespace secateurs::cuda {

void block_sparse_linear(const StackedLinear& p, const Cut& cut, const Launch& where) {
  StackedLauncher<false>(p, cut, where).run();
}

}  // namespace secateurs::cuda
