#include "cuda/stacked_linear/stacked_linear.cuh"

namespace secateurs::cuda {

void vector_linear(const StackedLinear& p, const Cut& cut, const Launch& where) {
  StackedLauncher<true>(p, cut, where).run();
}

}  // namespace secateurs::cuda
