#define SECATEURS_ISA portable

#include "cpu/vectors/portable.h"

#include "cpu/kernels/table.h"
