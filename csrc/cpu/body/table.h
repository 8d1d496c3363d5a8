// Everything an instruction set compiles, and its row in the table of dispatch.cpp.
//
// All code of these headers lies in a namespace of the instruction set, with internal linkage, and
// uses no inline function of the standard library: the linker could otherwise keep the copy with
// wide instructions for everyone.
#pragma once

#include "cpu/body/attention.h"
#include "cpu/body/block_sparse_linear.h"

#define SECATEURS_TEXT(x) #x
#define SECATEURS_NAME(x) SECATEURS_TEXT(x)

namespace secateurs::cpu::SECATEURS_ISA {

extern const Kernels kernels;
const Kernels kernels{SECATEURS_NAME(SECATEURS_ISA), &block_sparse_linear, &attention<float>,
                      &attention<bf16>};

}  // namespace secateurs::cpu::SECATEURS_ISA
