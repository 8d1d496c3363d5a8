#include "cpu/kernels.h"
namespace secateurs::cpu::avx2 {
extern const Kernels kernels;
const Kernels kernels{"avx2", nullptr, nullptr};
}  // namespace secateurs::cpu::avx2
