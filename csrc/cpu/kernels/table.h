// Everything an instruction set compiles, and its row in the table of dispatch.cpp.
//
// All code of these headers lies in a namespace of the instruction set, with internal linkage, and
// uses no inline function of the standard library: the linker could otherwise keep the copy with
// wide instructions for everyone.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/attention/attention.h"
#include "cpu/kernels/linear/block_sparse_linear.h"
#include "cpu/kernels/linear/int8_linear.h"
#include "cpu/kernels/linear/int8_vector_linear.h"
#include "cpu/kernels/linear/library_linear.h"
#include "cpu/kernels/linear/pattern_linear.h"
#include "cpu/kernels/norm/add_norm.h"

#define SECATEURS_TEXT(x) #x
#define SECATEURS_NAME(x) SECATEURS_TEXT(x)

namespace secateurs::cpu::SECATEURS_ISA {

extern const Kernels kernels;
// clang-format off
const Kernels kernels{
    SECATEURS_NAME(SECATEURS_ISA),
    &block_sparse_linear, &block_sparse_linear_bf16,
    &int8_linear<float>, &int8_linear<bf16>,
    &int8_vector_linear<float>, &int8_vector_linear<bf16>,
    &attention<float>, &attention<bf16>,
    &pattern_linear<float>, &pattern_linear<bf16>, bf16_together,
    &library_linear<float>, &library_linear<bf16>,
    &add_norm<float>, &add_norm<bf16>,
};
// clang-format on

}  // namespace secateurs::cpu::SECATEURS_ISA
