#define SECATEURS_ISA avx2

#include "cpu/vectors/avx2.h"

#include "cpu/kernels/table.h"
