#include "emulator/warp.h"

#include <string>

#include "emulator/machine.h"

namespace emulator {
namespace {

std::uint16_t half_of(std::uint32_t word, int which) {
  return static_cast<std::uint16_t>(word >> 16 * which);
}

template <class T>
T& of(void* const arguments[32], int lane) {
  return *static_cast<T*>(arguments[lane]);
}

// d += a b with a [16, K], b [K, 8]; the fragments of a are those of [16, 16] beside each other.
template <int K>
void accumulate(void* const arguments[32], const float (&a)[16][K]) {
  float b[K][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& p = of<Product>(arguments, lane);
    for (int r = 0; r < K / 8; ++r)
      for (int i = 0; i < 2; ++i)
        b[r * 8 + lane % 4 * 2 + i][lane / 4] = p.to_float(half_of(p.b[r], i));
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& p = of<Product>(arguments, lane);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = p.d[i];
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      p.d[i] = static_cast<float>(sum);
    }
  }
}

// Row, column and value of the eight numbers a lane holds of a [16, 16] fragment.
template <class F>
void each_of_a(const Product& p, int lane, F use) {
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 2; ++i)
      use(lane / 4 + r % 2 * 8, r / 2 * 8 + lane % 4 * 2 + i, p.to_float(half_of(p.a[r], i)));
}

}  // namespace

void shuffle_xor(void* const arguments[32]) {
  float before[32];
  for (int lane = 0; lane < 32; ++lane) before[lane] = of<Shuffle>(arguments, lane).x;
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = of<Shuffle>(arguments, lane);
    mine.x = before[lane ^ mine.lanes];
  }
}

void count_ballot(void* const arguments[32]) {
  std::uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    bits |= std::uint32_t{of<Ballot>(arguments, lane).says} << lane;
  for (int lane = 0; lane < 32; ++lane) of<Ballot>(arguments, lane).bits = bits;
}

void spread_matrices(void* const arguments[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& mine = of<Matrices>(arguments, lane);
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::uint32_t word = 0;
      for (int i = 0; i < 2; ++i) {
        const int row = mine.transposed ? lane % 4 * 2 + i : lane / 4;
        const int column = mine.transposed ? lane / 4 : lane % 4 * 2 + i;
        word |= std::uint32_t{of<Matrices>(arguments, matrix * 8 + row).row[column]} << 16 * i;
      }
      mine.r[matrix] = word;
    }
  }
}

void multiply_16x8x16(void* const arguments[32]) {
  float a[16][16];
  for (int lane = 0; lane < 32; ++lane)
    each_of_a(of<Product>(arguments, lane), lane,
              [&](int row, int column, float value) { a[row][column] = value; });
  accumulate<16>(arguments, a);
}

void multiply_sparse_16x8x32(void* const arguments[32]) {
  float a[16][32] = {};
  for (int lane = 0; lane < 32; ++lane)
    each_of_a(of<Product>(arguments, lane), lane, [&](int row, int column, float value) {
      const auto& holder = of<Product>(arguments, row % 8 * 4 + column / 8);
      const std::uint16_t places = half_of(holder.kept, row / 8);
      const int place = places >> column % 8 * 2 & 3;
      if (column % 2 && place <= (places >> (column % 8 - 1) * 2 & 3))
        fail("mma.sp with places that do not rise");
      a[row][column / 2 * 4 + place] = value;
    });
  accumulate<32>(arguments, a);
}

}  // namespace emulator
