// One multiprocessor: blocks one after the other in shuffled order, their threads as fibers under a
// seeded scheduler that looks for the order a kernel cannot stand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

// Where in a kernel something happens.
struct Where {
  const char* file;
  int line;
};

// Sets the order of blocks and threads for what is launched from here on.
void seed(std::uint64_t seed);

// Runs a grid. Throws std::runtime_error, in words, where the kernel does what it must not.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

// What follows is called by threads of a running kernel.

int thread();  // number within the block
[[noreturn]] void fail(const std::string& what);

// Gives up the processor until wake(thread); `what` must outlive the wait.
void wait(const char* what, Where where);
void wake(int thread);

// Barrier `id` of `count` threads of the block; what they did before is seen by all after it.
void barrier(int id, int count, const char* what, Where where);

// What all 32 lanes of a warp do at once: each brings its arguments, the last to come computes for
// all. `ordered`: it also orders memory among them.
using Compute = void (*)(void* const arguments[32]);
void collective(const char* what, void* arguments, Compute compute, bool ordered, Where where);

std::string text(Where where);

}  // namespace emulator
