#include "emulator/machine.h"

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "emulator/copies.h"
#include "emulator/fiber.h"
#include "emulator/memory.h"
#include "emulator/unseen.h"

#ifdef EMULATOR_TSAN
  #include <sanitizer/tsan_interface.h>
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

namespace emulator {
namespace {

constexpr int WARP = 32;

enum class Order { random, by_priority, last_lane_first, in_turn, ORDERS };

struct Thread {
  dim3 index;
  const char* waits_for = nullptr;
  Where where{};
};

// What ThreadSanitizer is told orders those who meet: one name for each meeting and the next, since
// some come to the next before others have left this one.
class Meeting {
 public:
  void* now() { return &names_[count_ % 2]; }
  void over() { ++count_; }

 private:
  char names_[2];
  unsigned count_ = 0;
};

struct Warp {
  std::uint32_t ready = 0;
  int priority = 0;
  std::uint32_t arrived = 0;  // at the collective under way
  const char* what = nullptr;
  Where where{};
  void* arguments[WARP];
  Meeting meeting;
};

struct Barrier {
  int count = 0;
  std::vector<int> waiting;
  Meeting meeting;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barriers[16];
  int running = 0;  // threads that have not finished
};

std::mt19937_64 random_source;
Order order;
Block block;
int current = -1;
std::string failure;
const std::function<void()>* kernel_under_way = nullptr;

std::vector<std::unique_ptr<Fiber>> fibers;

Fiber& host() {
  static Fiber fiber{Fiber::Host{}};
  return fiber;
}

std::size_t below(std::size_t n) { return random_source() % n; }

int chosen_bit(std::uint32_t bits) {
  if (order == Order::last_lane_first) return 31 - __builtin_clz(bits);
  if (order == Order::in_turn) return __builtin_ctz(bits);
  for (std::size_t skip = below(__builtin_popcount(bits)); skip; --skip) bits &= bits - 1;
  return __builtin_ctz(bits);
}

// The thread to run next, or -1 where all wait.
int next() {
  const int warps = static_cast<int>(block.warps.size());
  int chosen = -1, seen = 0;
  for (int i = 0; i < warps; ++i) {
    const int w = order == Order::in_turn ? (current / WARP + 1 + i) % warps : i;
    if (!block.warps[w].ready) continue;
    ++seen;
    if (order == Order::random) {
      if (below(seen) == 0) chosen = w;
    } else if (chosen < 0 || (order != Order::in_turn &&
                              block.warps[w].priority > block.warps[chosen].priority)) {
      chosen = w;
    }
  }
  return chosen < 0 ? -1 : chosen * WARP + chosen_bit(block.warps[chosen].ready);
}

void leave_to(int to) {
  Fiber& from = current < 0 ? host() : *fibers[current];
  if (to == current) return;
  current = to;
  if (to >= 0) threadIdx = block.threads[to].index;
  Fiber::go(from, to < 0 ? host() : *fibers[to]);
}

std::string deadlock() {
  std::map<std::string, std::vector<int>> by_reason;
  for (std::size_t t = 0; t < block.threads.size(); ++t)
    if (const Thread& thread = block.threads[t]; thread.waits_for)
      by_reason[std::string(thread.waits_for) + " at " + text(thread.where)].push_back(
          static_cast<int>(t));
  std::string report = "deadlock in block (" + std::to_string(blockIdx.x) + ", " +
                       std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
  for (const auto& [reason, threads] : by_reason)
    report += "; " + std::to_string(threads.size()) + " threads (from " +
              std::to_string(threads.front()) + " to " + std::to_string(threads.back()) +
              ") wait for " + reason;
  return report;
}

// The thread to go on with when this one has returned.
int after_return() {
  const Unseen unseen;
  Warp& warp = block.warps[current / WARP];
  warp.ready &= ~(1u << current % WARP);
  if (warp.arrived)
    fail("divergent warp: thread " + std::to_string(current) + " has returned, others are at " +
         warp.what + ", " + text(warp.where));
  copies_must_be_over();
  const int to = --block.running ? next() : -1;
  if (block.running && to < 0) failure = deadlock();
  return to;
}

void enter() {
  Fiber::entered();
  __tsan_acquire(&block);
  (*kernel_under_way)();
  __tsan_release(&block);
  leave_to(after_return());
  __builtin_unreachable();
}

void run_block(dim3 size) {
  const int threads = static_cast<int>(size.x * size.y * size.z);
  block = Block{};
  block.threads.resize(threads);
  block.warps.resize(threads / WARP);
  block.running = threads;
  for (Warp& warp : block.warps) warp.ready = ~0u;
  std::vector<int> priorities(block.warps.size());
  std::iota(priorities.begin(), priorities.end(), 0);
  std::shuffle(priorities.begin(), priorities.end(), random_source);
  for (std::size_t w = 0; w < priorities.size(); ++w) block.warps[w].priority = priorities[w];
  order = static_cast<Order>(below(static_cast<std::size_t>(Order::ORDERS)));
  while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
  for (int t = 0; t < threads; ++t) {
    const unsigned u = t;
    block.threads[t].index = {u % size.x, u / size.x % size.y, u / (size.x * size.y)};
    fibers[t]->prepare(enter);
  }
  forget_copies(threads);
  host();  // before anything leaves it
  // One block after the other: they share what they run on, and races between them are not sought.
  __tsan_release(&block);
  leave_to(next());
  __tsan_acquire(&block);
}

}  // namespace

void seed(std::uint64_t seed) { random_source.seed(seed * 0x9e3779b97f4a7c15u + 1); }

void run(dim3 grid, dim3 size, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const std::size_t blocks = std::size_t{1} * grid.x * grid.y * grid.z;
  std::vector<std::size_t> shuffled(blocks);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  std::shuffle(shuffled.begin(), shuffled.end(), random_source);
  kernel_under_way = &kernel;
  gridDim = grid;
  blockDim = size;
  failure.clear();
  for (const std::size_t b : shuffled) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    shared_memory().reset(shared_bytes);
    run_block(size);
    if (failure.empty()) failure = shared_memory().damage();
    if (failure.empty()) failure = device_memory_damage();
    if (!failure.empty()) throw std::runtime_error(failure);
  }
}

int thread() { return current; }

void fail(const std::string& what) {
  failure = what + ", thread " + std::to_string(current) + " of block " +
            std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y);
  leave_to(-1);  // the block is given up: nobody comes back
  __builtin_unreachable();
}

void wait(const char* what, Where where) {
  Thread& thread = block.threads[current];
  thread.waits_for = what;
  thread.where = where;
  block.warps[current / WARP].ready &= ~(1u << current % WARP);
  const int to = next();
  if (to < 0) failure = deadlock();
  leave_to(to);
}

void wake(int thread) {
  block.threads[thread].waits_for = nullptr;
  block.warps[thread / WARP].ready |= 1u << thread % WARP;
}

void barrier(int id, int count, const char* what, Where where) {
  const Unseen unseen;
  if (id < 0 || id > 15 || count % WARP || count <= 0)
    fail("barrier " + std::to_string(id) + " of " + std::to_string(count) + " threads, " +
         text(where));
  Barrier& barrier = block.barriers[id];
  if (!barrier.waiting.empty() && barrier.count != count)
    fail("barrier " + std::to_string(id) + " of " + std::to_string(count) +
         " threads, while others expect " + std::to_string(barrier.count) + ", " + text(where));
  barrier.count = count;
  void* const order = barrier.meeting.now();
  __tsan_release(order);
  barrier.waiting.push_back(current);
  if (static_cast<int>(barrier.waiting.size()) == count) {
    for (const int t : barrier.waiting) wake(t);
    barrier.waiting.clear();
    barrier.meeting.over();
    leave_to(next());  // whoever came last need not be the first to go on
  } else {
    wait(what, where);
  }
  __tsan_acquire(order);
}

void collective(const char* what, void* arguments, Compute compute, bool ordered, Where where) {
  const Unseen unseen;
  Warp& warp = block.warps[current / WARP];
  if (!warp.arrived) {
    warp.what = what;
    warp.where = where;
  } else if (warp.what != what || warp.where.line != where.line) {
    fail("divergent warp: thread " + std::to_string(current) + " is at " + what + ", " +
         text(where) + ", others are at " + warp.what + ", " + text(warp.where));
  }
  warp.arguments[current % WARP] = arguments;
  warp.arrived |= 1u << current % WARP;
  void* const order = warp.meeting.now();
  if (ordered) __tsan_release(order);
  if (warp.arrived == ~0u) {
    warp.arrived = 0;
    warp.meeting.over();
    compute(warp.arguments);
    for (int lane = 0; lane < WARP; ++lane) wake(current / WARP * WARP + lane);
    leave_to(next());
  } else {
    wait(what, where);
  }
  if (ordered) __tsan_acquire(order);
}

std::string text(Where where) {
  const std::string file = where.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line);
}

}  // namespace emulator
