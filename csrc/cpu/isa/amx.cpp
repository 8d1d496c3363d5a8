#include "cpu/kernels.h"
namespace secateurs::cpu::amx {
extern const Kernels kernels;
const Kernels kernels{"amx", nullptr, nullptr};
}  // namespace secateurs::cpu::amx
