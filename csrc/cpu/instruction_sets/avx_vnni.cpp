#define SECATEURS_ISA avx_vnni

#include "cpu/vectors/avx2.h"

#include "cpu/kernels/table.h"
