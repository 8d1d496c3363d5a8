#include "cpu/kernels.h"
namespace secateurs::cpu::portable {
extern const Kernels kernels;
const Kernels kernels{"portable", nullptr, nullptr};
}  // namespace secateurs::cpu::portable
