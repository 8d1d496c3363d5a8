#define SECATEURS_ISA emulated_amx
#define SECATEURS_EMULATED_TILES

#include "cpu/vectors/amx.h"

#include "cpu/kernels/table.h"
