// Working memory that a thread keeps between calls.
#pragma once

#include <cstddef>

namespace secateurs::cpu {

// At least `count` floats, 64-byte aligned, of the calling thread; what an earlier call returned
// for the same slot is lost. Grows and is kept, so that a steady state allocates nothing. Throws
// std::bad_alloc.
float* scratch(int slot, std::size_t count);

// Kernels use the slots in front; a layer holds its own while they run.
constexpr int layer_slot = 3, scratch_slots = 4;

}  // namespace secateurs::cpu
