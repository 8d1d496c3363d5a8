// csrc/cuda/ptx.cuh on the CPU: the same names, with what the machine could do at its worst.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/copies.h"
#include "emulator/machine.h"
#include "emulator/memory.h"
#include "emulator/warp.h"

namespace secateurs::cuda::ptx {

using Half = __half;
using BFloat = __nv_bfloat16;
using emulator::Where;

#define WHERE \
  Where { file, line }
#define CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <int ALIGN>
inline unsigned char* dyn_smem() {
  return emulator::shared_memory().base(ALIGN);
}

inline void sync_block(CALLER) {
  emulator::barrier(0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), "sync_block", WHERE);
}

inline void sync_warp(CALLER) {
  emulator::collective("sync_warp", nullptr, emulator::nothing, true, WHERE);
}

template <int ID>
inline void sync_named(int count, CALLER) {
  emulator::barrier(ID, count, "sync_named", WHERE);
}

// The bytes are written here and not in the emulator, for ThreadSanitizer to see who writes them.
inline void copy_async(void* shared, const void* global, int bytes, CALLER) {
  auto* to = static_cast<unsigned char*>(shared);
  emulator::start_copy({to, static_cast<const unsigned char*>(global), bytes}, WHERE);
  std::memset(to, 0xff, 16);
}

inline void copy_async16(void* shared, const void* global, bool live, CALLER) {
  copy_async(shared, global, live ? 16 : 0, file, line);
}

inline void commit_copies() { emulator::close_group(); }

template <int PENDING>
inline void wait_copies() {
  for (emulator::Copy copy; emulator::copy_due(PENDING, copy);) {
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

inline void load_matrices(std::uint32_t (&r)[4], const void* row, bool transposed, Where where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 || !emulator::shared_memory().holds(row, 16))
    emulator::fail("ldmatrix from what is no aligned shared memory, " + emulator::text(where));
  emulator::Matrices mine{{}, transposed, {}};
  std::memcpy(mine.row, row, 16);
  emulator::collective("ldmatrix", &mine, emulator::spread_matrices, false, where);
  for (int i = 0; i < 4; ++i) r[i] = mine.r[i];
}

inline void load_matrices(std::uint32_t (&r)[4], const void* row, CALLER) {
  load_matrices(r, row, false, WHERE);
}

inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row, CALLER) {
  load_matrices(r, row, true, WHERE);
}

template <class T>
float to_float(std::uint16_t bits) {
  T number;
  std::memcpy(&number, &bits, 2);
  return static_cast<float>(number);
}

template <class T>
inline void multiply(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                     CALLER) {
  const std::uint32_t b[2] = {b0, b1};
  emulator::Product mine{d, a, b, 0, to_float<T>};
  emulator::collective("mma", &mine, emulator::multiply_16x8x16, false, WHERE);
}

template <class T>
inline void multiply_sparse(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4],
                            std::uint32_t kept, CALLER) {
  emulator::Product mine{d, a, b, kept, to_float<T>};
  emulator::collective("mma.sp", &mine, emulator::multiply_sparse_16x8x32, false, WHERE);
}

inline float shuffle_xor(float x, int lanes, CALLER) {
  emulator::Shuffle mine{x, lanes};
  emulator::collective("shuffle", &mine, emulator::shuffle_xor, false, WHERE);
  return mine.x;
}

inline std::uint32_t ballot(bool says, CALLER) {
  emulator::Ballot mine{says, 0};
  emulator::collective("ballot", &mine, emulator::count_ballot, false, WHERE);
  return mine.bits;
}

inline int leading_zeros(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }

inline float exp2(float x) { return std::exp2(x); }

#undef WHERE
#undef CALLER

}  // namespace secateurs::cuda::ptx
