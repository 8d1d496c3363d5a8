// Which of the faults seeded into the sources is switched on; 0: none.
#pragma once

namespace emulator {

inline int fault = 0;

}  // namespace emulator
