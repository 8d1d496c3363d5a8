#include "cuda/stacked_linear/stacked_linear.cuh"

namespace secateurs::cuda {

void vector_linear(const StackedLinear& p, const Cut& cut, const Launch& where) {
  StackedLauncher<true>(p, cut, where).run();
}

std::int64_t vector_linear_at_once(const StackedLinear& p, int bm, int device) {
  return StackedLauncher<true>(p, {bm, 0, 0}, {device, nullptr}).at_once();
}

}  // namespace secateurs::cuda
