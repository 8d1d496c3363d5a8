// What a warp does together: shuffles, ldmatrix, mma. Arguments of one lane, and who computes.
#pragma once

#include <cstdint>

namespace emulator {

struct Shuffle {
  float x;
  int lanes;
};
void shuffle_xor(void* const arguments[32]);

struct Ballot {
  bool says;
  std::uint32_t bits;
};
void count_ballot(void* const arguments[32]);

struct Matrices {
  std::uint16_t row[8];  // read by the lane that named it
  bool transposed;
  std::uint32_t r[4];
};
void spread_matrices(void* const arguments[32]);

using ToFloat = float (*)(std::uint16_t bits);

struct Product {
  float* d;
  const std::uint32_t *a, *b;
  std::uint32_t kept;
  ToFloat to_float;
};
void multiply_16x8x16(void* const arguments[32]);
void multiply_sparse_16x8x32(void* const arguments[32]);

inline void nothing(void* const[32]) {}

}  // namespace emulator
