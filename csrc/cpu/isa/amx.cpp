#define SECATEURS_ISA amx
#include "cpu/body/table.h"
#include "cpu/simd/avx512.h"
