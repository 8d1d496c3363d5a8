#define SECATEURS_ISA avx512

#include "cpu/vectors/avx512.h"

#include "cpu/kernels/table.h"
