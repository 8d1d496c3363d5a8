#define SECATEURS_ISA avx512

#include "cpu/simd/avx512.h"

#include "cpu/body/table.h"
