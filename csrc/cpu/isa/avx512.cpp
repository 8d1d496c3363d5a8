#include "cpu/kernels.h"
namespace secateurs::cpu::avx512 {
extern const Kernels kernels;
const Kernels kernels{"avx512", nullptr, nullptr};
}  // namespace secateurs::cpu::avx512
