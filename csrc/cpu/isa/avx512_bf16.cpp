#define SECATEURS_ISA avx512_bf16

#include "cpu/simd/avx512.h"

#include "cpu/body/table.h"
