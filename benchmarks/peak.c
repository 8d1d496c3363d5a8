// What this CPU can do at best: multiply-adds from registers, and reads from memory.
// Kernels are judged by their share of these, so the loops here may use anything the CPU has.

#include <omp.h>
#include <stddef.h>
#if defined(__x86_64__)
  #include <immintrin.h>
  #if defined(__linux__)
    #include <sys/syscall.h>
    #include <unistd.h>
  #endif
#endif

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

// The same for products of bf16 with sums in float: by tiles, by pairs, or 0 where the CPU has none.
double peak_bf16(long rounds, int threads, float* sink) {
#if defined(__AMX_BF16__) && defined(__linux__)
  struct {
    unsigned char palette, start, reserved[14];
    unsigned short row_bytes[16];
    unsigned char rows[16];
  } config = {.palette = 1};
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
  syscall(SYS_arch_prctl, 0x1023, 18);  // the system hands tiles out on request
  (void)sink;
  #pragma omp parallel num_threads(threads)
  {
    _tile_loadconfig(&config);
    for (long r = 0; r < rounds / 16; ++r) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
  }
  return 4.0 * 16 * 16 * 32 * 2 * (double)(rounds / 16) * threads;
#elif defined(__AVX512BF16__)
  #pragma omp parallel num_threads(threads)
  {
    __m512 acc[CHAINS] = {0};
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (long r = 0; r < rounds; ++r) {
  #pragma GCC unroll 24
      for (int i = 0; i < CHAINS; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, a);
      __asm__ volatile("" : "+m"(*sink));
    }
    __m512 sum = acc[0];
  #pragma GCC unroll 24
    for (int i = 1; i < CHAINS; ++i) sum += acc[i];
  #pragma omp critical
    *sink += sum[0];
  }
  return 2.0 * 32 * CHAINS * (double)rounds * threads;
#else
  (void)rounds, (void)threads, (void)sink;
  return 0;
#endif
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
