#define SECATEURS_ISA avx512_bf16

#include "cpu/vectors/avx512.h"

#include "cpu/kernels/table.h"
