// y = act(x W^T + bias) * multiplier + residual for few rows of x, where each 4 x 4 (or 1 x 4) block of W
// follows one pattern of a library. Reading W is what this costs, so W stays compressed until it is
// in a register:
//
//   16 weights of one 4 x 4 block, or of four 1 x 4 blocks side by side, are one cell:
//     pattern(s) -> 16 bits -> stored values expanded to their lanes -> times x, lane by lane
//
// Lanes are added up once per row of blocks. Threads take runs of outputs; every output is summed by
// one thread in the order of its inputs.
#pragma once

#include "cpu/kernels/arithmetic.h"
#include "cpu/kernels/linear/epilogue.h"
#include "cpu/kernels/share.h"
#include "cpu/problems.h"
#include "cpu/scratch.h"

namespace secateurs::cpu::SECATEURS_ISA {
namespace {

constexpr int cell = 16;               // weights
constexpr int64_t run_length = 64;     // outputs whose sums wait for the epilogue
constexpr int64_t bytes_ahead = 6144;  // weights come from memory; hardware stops at each page
constexpr int library_rows = 16;       // of x

template <class T, int P>
class LibrarySolver {
  static constexpr int W = F::width, parts = cell / W;
  static constexpr int blocks = P == 4 ? 1 : 4;         // of a cell
  static constexpr int inputs = 4 * blocks;             // of a cell
  static constexpr int rows_at_once = W == 16 ? 8 : 2;  // whose sums fit the registers

 public:
  explicit LibrarySolver(const LibraryLinear<T>& p) : p(p) {
    for (int64_t i = 0; i < p.patterns; ++i)
      for (int j = 0; j < 4 * P; ++j)
        if (p.library[i * 4 * P + j]) bits[i] = static_cast<std::uint16_t>(bits[i] | 1u << j);
    for (int i = 0; i < 256; ++i)
      two[i] = static_cast<std::uint8_t>(bits[i & 15] | bits[i >> 4] << 4);
    columns = p.k / 4;
    padded = ceil_div(p.k, cell) * cell;
    x = scratch(0, static_cast<std::size_t>(p.m * padded));
    for (int64_t i = 0; i < p.m; ++i) widen(p.x + i * p.x_stride, x + i * padded);
  }

  void run() const {
    const int64_t runs = ceil_div(p.n, run_length);
    const int threads = p.m * p.n * p.k < 2 * serial_limit ? 1 : p.threads;
    in_parallel(threads, [&] {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < runs; ++i) solve(i * run_length);
    });
  }

 private:
  const LibraryLinear<T>& p;
  std::uint16_t bits[16] = {};  // of each pattern
  std::uint8_t two[256];        // of two 1 x 4 patterns side by side
  int64_t columns, padded;      // blocks in a row; inputs with zeros behind
  float* x;

  void widen(const T* from, float* to) const {
    int64_t j = 0;
    for (; j + W <= p.k; j += W) store(to + j, load(from + j));
    if (j < p.k) store(to + j, load(from + j, static_cast<int>(p.k - j)));
    for (j = j < p.k ? j + W : j; j < padded; j += W) store(to + j, zero());
  }

  void solve(int64_t output) const {
    float sums[library_rows * run_length];
    const int64_t width = p.n - output < run_length ? p.n - output : run_length;
    for (int64_t j = 0; j < width; j += P) {
      const int64_t row = (output + j) / P;
      int64_t i = 0;
      for (; i + rows_at_once <= p.m; i += rows_at_once)
        add<rows_at_once>(row, i, sums + i * run_length + j);
      if constexpr (rows_at_once > 4)
        for (; i + 4 <= p.m; i += 4) add<4>(row, i, sums + i * run_length + j);
      for (; i + 2 <= p.m; i += 2) add<2>(row, i, sums + i * run_length + j);
      for (; i < p.m; ++i) add<1>(row, i, sums + i * run_length + j);
    }
    finish(p, sums, run_length, {0, output, static_cast<int>(p.m), width});
  }

  // P outputs of MR rows of x.
  template <int MR>
  void add(int64_t row, int64_t first, float* to) const {
    constexpr int lanes = MR >= 4 ? 1 : 4 / MR;  // hide the latency of a multiply-add
    const std::uint8_t* code = p.codes + row * columns;
    const T* values = p.values + row * columns * p.ones;
    const float* in = x + first * padded;
    F sum[lanes][MR][parts];
    for (auto& lane : sum)
      for (auto& each : lane)
        for (auto& part : each) part = zero();

    const auto step = [&](unsigned pattern, auto& acc) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int f = 0; f < parts; ++f) {
        const unsigned mine = pattern >> f * W & ((1u << W) - 1);
        const int count = parts == 1 ? static_cast<int>(p.ones) * blocks : __builtin_popcount(mine);
        const F w = expand(load(values, count), mine);
        values += count;
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
          const float* at = in + i * padded;
          acc[i][f] = fma(w, P == 4 ? repeat4(at) : load(at + f * W), acc[i][f]);
        }
      }
      in += inputs;
      __builtin_prefetch(reinterpret_cast<const char*>(values) + bytes_ahead);
    };

    int64_t c = 0;
    for (; c + lanes * blocks <= columns; c += lanes * blocks)
#pragma GCC unroll 4
      for (int l = 0; l < lanes; ++l) step(pattern_at(code + c + l * blocks), sum[l]);
    for (; c + blocks <= columns; c += blocks) step(pattern_at(code + c), sum[0]);
    if (c < columns) last(code + c, static_cast<int>(columns - c), values, in, sum[0]);

    for (int i = 0; i < MR; ++i) {
      float lane[cell];
      for (int f = 0; f < parts; ++f) {
        F total = sum[0][i][f];
        for (int l = 1; l < lanes; ++l) total = total + sum[l][i][f];
        store(lane + f * W, total);
      }
      for (int j = 0; j < P; ++j) {
        float total = 0;
        for (int q = 0; q < cell / P; q += 4)
          total +=
              (lane[j * 4 + q] + lane[j * 4 + q + 1]) + (lane[j * 4 + q + 2] + lane[j * 4 + q + 3]);
        to[i * run_length + j] = total;
      }
    }
  }

  unsigned pattern_at(const std::uint8_t* code) const {
    if (P == 4) return bits[code[0]];
    std::uint32_t four;
    __builtin_memcpy(&four, code, sizeof four);
    four |= four >> 4;
    return two[four & 0xff] | static_cast<unsigned>(two[four >> 16 & 0xff]) << 8;
  }

  // A cell of fewer than four blocks, at the end of a row.
  template <int MR>
  void last(const std::uint8_t* code, int count, const T* values, const float* in,
            F (&acc)[MR][parts]) const {
    unsigned pattern = 0;
    for (int i = 0; i < count; ++i) pattern |= static_cast<unsigned>(bits[code[i]]) << 4 * i;
    for (int f = 0; f < parts; ++f) {
      const unsigned mine = pattern >> f * W & ((1u << W) - 1);
      const int stored = __builtin_popcount(mine);
      const F w = expand(load(values, stored), mine);
      values += stored;
      for (int i = 0; i < MR; ++i) acc[i][f] = fma(w, load(in + i * padded + f * W), acc[i][f]);
    }
  }
};

// Blocks of 4 x 4 or 1 x 4, up to 16 rows of x. y must not overlap any input.
template <class T>
void library_linear(const LibraryLinear<T>& p) {
  if (!p.m || !p.n) return;
  if (p.block_outputs == 4)
    LibrarySolver<T, 4>(p).run();
  else
    LibrarySolver<T, 1>(p).run();
}

}  // namespace
}  // namespace secateurs::cpu::SECATEURS_ISA
