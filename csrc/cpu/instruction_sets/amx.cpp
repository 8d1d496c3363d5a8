#define SECATEURS_ISA amx

#include "cpu/vectors/amx.h"

#include "cpu/kernels/table.h"
