#define SECATEURS_ISA amx

#include "cpu/simd/amx.h"

#include "cpu/body/table.h"
