// Which instruction sets were compiled, and which of them this CPU and its operating system can
// run.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace secateurs::cpu {

struct Isa {
  const Kernels* kernels;
  bool supported;
};

// Best first; the last one, "portable", runs everywhere. Detected once.
const std::vector<Isa>& isas();

// Position in isas() of the best supported one, or of the one named. Throws std::invalid_argument
// with a sentence when the name is unknown or the CPU cannot run it.
int choose(const std::string& name);

}  // namespace secateurs::cpu
