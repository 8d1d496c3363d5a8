// The emulator itself: small kernels that do what none may, and what each must be told.
#include "cases/case.h"
#include "cuda/ptx.cuh"

using namespace secateurs::cuda;

namespace {

using Kernel = void (*)(float*);

// Runs a kernel on 64 threads, 256 bytes of shared memory and 30 floats; `expected` is part of what
// it must be told, empty: nothing.
void run(Kernel kernel, const std::string& expected, std::uint64_t) {
  emulator::DeviceMemory memory(30 * sizeof(float));
  std::string told;
  try {
    launch(kernel, dim3(2), 64, 256, {0, nullptr}, static_cast<float*>(memory.data()),
           [] { return std::string("a kernel"); });
  } catch (const std::exception& error) {
    told = error.what();
  }
  if (expected.empty() ? !told.empty() : told.find(expected) == std::string::npos)
    throw std::runtime_error("expected to be told '" + expected + "', was told '" + told + "'");
}

void does_nothing(float*) {}

// A kernel must be allowed much shared memory on each device, and need not be again and again.
void allow_once_on_each_device(std::uint64_t) {
  const int before = emulator::times_allowed;
  for (const int device : {0, 1, 0, 1})
    for (const int kilobytes : {40, 60, 99, 60}) {
      const OnDevice on(device);
      launch(does_nothing, dim3(1), 32, kilobytes << 10, {device, nullptr},
             static_cast<float*>(nullptr), [] { return std::string("a kernel"); });
      at_once(reinterpret_cast<const void*>(&does_nothing), 32, kilobytes << 10, device);
    }
  static bool first = true;
  if (const int times = emulator::times_allowed - before; times != (first ? 4 : 0))
    throw std::runtime_error("allowed " + std::to_string(times) + " times");
  first = false;
}

float* shared() { return reinterpret_cast<float*>(ptx::dyn_smem<16>()); }
int t() { return static_cast<int>(threadIdx.x); }

void fresh_memory_is_no_number(float* global) {
  if (shared()[t()] == shared()[t()] || global[t() % 30] == global[t() % 30])
    emulator::fail("memory was a number before anybody wrote");
}

void halves_meet_by_themselves(float*) {
  float* numbers = shared();
  numbers[t()] = static_cast<float>(t());
  t() < 32 ? ptx::sync_named<1>(32) : ptx::sync_named<2>(32);
  if (numbers[t() ^ 1] != static_cast<float>(t() ^ 1)) emulator::fail("a barrier let one through");
}

void some_do_not_come(float*) {
  if (t() != 40) ptx::sync_block();
}

void numbers_disagree(float*) { t() < 32 ? ptx::sync_named<1>(96) : ptx::sync_named<1>(64); }

void a_lane_leaves(float*) {
  if (t() != 5) ptx::shuffle_xor(1, 1);
}

void lanes_do_two_things(float*) {
  if (t() % 2) {
    ptx::shuffle_xor(1, 1);
  } else {
    ptx::sync_warp();
  }
}

void before_shared_memory(float*) { shared()[-1] = t(); }

void behind_shared_memory(float*) {
  if (t() == 0) reinterpret_cast<unsigned char*>(shared())[256] = 0;
}

void before_an_array(float* global) {
  if (t() == 0) global[-1] = 0;
}

void behind_an_array(float* global) {
  if (t() == 0) global[30] = 0;  // before the guard page, which is 8 bytes further
}

void a_copy_lands_when_it_is_waited_for(float* global) {
  float* numbers = shared();
  if (t() < 7) {
    for (int i = 0; i < 4; ++i) global[t() * 4 + i] = 1;
    numbers[t() * 4] = 2;
    ptx::copy_async16(numbers + t() * 4, global + t() * 4, true);
    ptx::commit_copies();
    if (numbers[t() * 4] == numbers[t() * 4]) emulator::fail("a copy landed, or had not begun");
    ptx::copy_async16(numbers + 32 + t() * 4, global, false);
    ptx::commit_copies();
    ptx::wait_copies<1>();
    if (numbers[t() * 4] != 1) emulator::fail("a copy did not land");
    ptx::wait_copies<0>();
    if (numbers[32 + t() * 4] != 0) emulator::fail("a dead copy wrote no zeros");
  }
}

void a_copy_of_less_leaves_zeros(float* global) {
  if (t() == 0) {
    global[28] = global[29] = 1;
    ptx::copy_async(shared(), global + 28, 8);  // no more is there
    ptx::commit_copies();
    ptx::wait_copies<0>();
    for (int i = 0; i < 4; ++i)
      if (shared()[i] != (i < 2 ? 1 : 0)) emulator::fail("not what was copied, and zeros");
  }
}

void a_copy_of_too_much(float* global) { ptx::copy_async(shared(), global, 20); }
void a_copy_is_left_behind(float* global) { ptx::copy_async16(shared(), global, true); }
void a_copy_from_between(float* global) { ptx::copy_async16(shared(), global + 1, true); }
void a_dead_copy_from_between(float* global) { ptx::copy_async16(shared(), global + 1, false); }
void a_copy_from_behind(float* global) { ptx::copy_async16(shared(), global + 28, true); }
void a_copy_to_elsewhere(float* global) { ptx::copy_async16(shared() + 64, global, true); }

}  // namespace

std::vector<Case> machine_cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, Kernel kernel, const char* expected) {
    cases.push_back({"machine", name, [=](std::uint64_t seed) { run(kernel, expected, seed); }});
  };
#define ADD(kernel, expected) add(#kernel, kernel, expected)
  ADD(fresh_memory_is_no_number, "");
  ADD(halves_meet_by_themselves, "");
  ADD(a_copy_lands_when_it_is_waited_for, "");
  ADD(a_copy_of_less_leaves_zeros, "");
  ADD(a_copy_of_too_much, "copy of 20 bytes");
  ADD(some_do_not_come, "deadlock in block");
  ADD(numbers_disagree, "while others expect");
  ADD(a_lane_leaves, "shuffle");  // where the others are, whoever comes first
  ADD(lanes_do_two_things, "divergent warp");
  ADD(before_shared_memory, "shared memory were written");
  ADD(behind_shared_memory, "shared memory were written");
  ADD(before_an_array, "in global memory were written");
  ADD(behind_an_array, "in global memory were written");
  ADD(a_copy_is_left_behind, "returned with copies under way");
  ADD(a_copy_from_between, "no aligned global memory");
  ADD(a_dead_copy_from_between, "no aligned global memory");
  ADD(a_copy_from_behind, "no aligned global memory");
  ADD(a_copy_to_elsewhere, "no aligned shared memory");
#undef ADD
  cases.push_back({"machine", "allow_once_on_each_device", allow_once_on_each_device});
  return cases;
}
