// What this CPU can do at best: fp32 fused multiply-adds from registers, and reads from memory.
// Kernels are judged by their share of these, so the loops here may use anything the CPU has.

#include <omp.h>
#include <stddef.h>

#if defined(__AVX512F__)
enum { WIDTH = 16, CHAINS = 24 };
#else
enum { WIDTH = 8, CHAINS = 12 };
#endif
typedef float vec __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4)));

// Runs `rounds` of independent chains on every thread; returns the floating-point operations done.
double peak_fma(long rounds, int threads, float* sink) {
#pragma omp parallel num_threads(threads)
  {
    vec acc[CHAINS];
    vec a = (vec){} + 1.0000001f;
    vec b = (vec){} + 1e-7f;
    // All loops over chains are unrolled, so that the chains live in registers.
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) acc[i] = (vec){} + (float)i;
    for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
      for (int i = 0; i < CHAINS; ++i) acc[i] = acc[i] * a + b;
      // Keeps the compiler from proving what the rounds add up to.
      __asm__ volatile("" : "+m"(*sink));
    }
    vec sum = acc[0];
#pragma GCC unroll 24
    for (int i = 1; i < CHAINS; ++i) sum += acc[i];
#pragma omp critical
    *sink += sum[0];
  }
  return 2.0 * WIDTH * CHAINS * (double)rounds * threads;
}

// Sums `count` floats (a multiple of 64), each thread its own part.
float peak_read(const float* data, size_t count, int threads) {
  float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    size_t steps = count / 64 / threads, first = steps * omp_get_thread_num() * 64;
    vec s[64 / WIDTH] = {};
    for (size_t i = 0; i < steps; ++i)
      for (int j = 0; j < 64 / WIDTH; ++j) s[j] += *(const vec*)(data + first + i * 64 + j * WIDTH);
    for (int j = 0; j < 64 / WIDTH; ++j) total += s[j][0];
  }
  return total;
}
