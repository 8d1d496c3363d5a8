#define SECATEURS_ISA avx2

#include "cpu/simd/avx2.h"

#include "cpu/body/table.h"
