#define SECATEURS_ISA portable

#include "cpu/simd/portable.h"

#include "cpu/body/table.h"
