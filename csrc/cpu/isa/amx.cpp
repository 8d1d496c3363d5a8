#define SECATEURS_ISA amx

#include "cpu/simd/avx512.h"

#include "cpu/body/table.h"
