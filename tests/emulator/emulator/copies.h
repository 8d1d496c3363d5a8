// cp.async: a copy that lands as late as it may, when the thread that started it waits for it.
#pragma once

#include <cstdint>

#include "emulator/machine.h"

namespace emulator {

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;  // zeros behind them, up to 16
};

// Checks and remembers a copy in the group that is open; the caller has poisoned its target.
void start_copy(const Copy& copy, Where where);
void close_group();
// The oldest copy that must have landed if at most `pending` groups may be under way; the caller
// moves its bytes. False: no more.
bool copy_due(int pending, Copy& copy);

void copies_must_be_over();  // of the thread that returns
void forget_copies(int threads);

}  // namespace emulator
