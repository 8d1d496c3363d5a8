#include "emulator/copies.h"

#include <deque>
#include <vector>

#include "emulator/memory.h"
#include "emulator/unseen.h"

namespace emulator {
namespace {

struct Pending {
  std::deque<std::pair<int, Copy>> copies;  // with the number of their group
  int group = 0;                            // the one that is open
};

std::vector<Pending> pending;  // by thread

}  // namespace

void start_copy(const Copy& copy, Where where) {
  const Unseen unseen;
  const auto address = reinterpret_cast<std::uintptr_t>(copy.to);
  if (address % 16 || !shared_memory().holds(copy.to, 16))
    fail("copy to what is no aligned shared memory, " + text(where));
  if (copy.bytes < 0 || copy.bytes > 16)
    fail("copy of " + std::to_string(copy.bytes) + " bytes, " + text(where));
  // The hardware checks the address of a copy of nothing as well.
  if (reinterpret_cast<std::uintptr_t>(copy.from) % 16 ||
      (copy.bytes && !on_device(copy.from, copy.bytes)))
    fail("copy from what is no aligned global memory, " + text(where));
  Pending& mine = pending[thread()];
  mine.copies.push_back({mine.group, copy});
}

void close_group() { ++pending[thread()].group; }

bool copy_due(int left, Copy& copy) {
  const Unseen unseen;
  Pending& mine = pending[thread()];
  if (mine.copies.empty() || mine.copies.front().first >= mine.group - left) return false;
  copy = mine.copies.front().second;
  mine.copies.pop_front();
  return true;
}

void copies_must_be_over() {
  if (!pending[thread()].copies.empty()) fail("a thread returned with copies under way");
}

void forget_copies(int threads) { pending.assign(threads, {}); }

}  // namespace emulator
