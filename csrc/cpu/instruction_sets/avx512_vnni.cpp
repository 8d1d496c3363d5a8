#define SECATEURS_ISA avx512_vnni

#include "cpu/vectors/avx512.h"

#include "cpu/kernels/table.h"
