// A kernel on one problem, judged by a formula in double that shares no code with it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "emulator/memory.h"

struct Case {
  std::string kernel;                           // which kernel, instance and all
  std::string problem;                          // which problem
  std::function<void(std::uint64_t seed)> run;  // throws std::runtime_error, in words
};

std::vector<Case> attention_cases();
std::vector<Case> cut_cases();
std::vector<Case> linear_cases();
std::vector<Case> machine_cases();
std::vector<Case> norm_cases();
std::vector<Case> pattern_cases();

using Numbers = std::vector<double>;

struct Random {
  std::mt19937_64 source;
  explicit Random(std::uint64_t seed) : source(seed) {}
  double between(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(source);
  }
  int below(int n) { return static_cast<int>(source() % n); }
  bool chance(double p) { return between(0, 1) < p; }
};

using secateurs::Dtype;

inline const char* name(Dtype dtype) {
  return dtype == Dtype::float16 ? "half" : dtype == Dtype::bfloat16 ? "bfloat" : "float";
}

// How far a correctly rounded number of a dtype may be from the truth.
inline double rounding(Dtype dtype) {
  return dtype == Dtype::float16 ? 0x1p-11 : dtype == Dtype::bfloat16 ? 0x1p-8 : 0x1p-22;
}

inline double rounded(double x, Dtype dtype) {
  const auto y = static_cast<float>(x);
  return dtype == Dtype::float16    ? static_cast<float>(__half(y))
         : dtype == Dtype::bfloat16 ? static_cast<float>(__nv_bfloat16(y))
                                    : y;
}

// Numbers in global memory: what a kernel reads, and their exact values.
class Array {
 public:
  Array(std::size_t count, Dtype dtype)
      : dtype_(dtype), count_(count), memory_(count * (dtype == Dtype::float32 ? 4 : 2)) {}

  void set(std::size_t i, double x) {
    if (dtype_ == Dtype::float16) {
      static_cast<__half*>(memory_.data())[i] = __half(static_cast<float>(x));
    } else if (dtype_ == Dtype::bfloat16) {
      static_cast<__nv_bfloat16*>(memory_.data())[i] = __nv_bfloat16(static_cast<float>(x));
    } else {
      static_cast<float*>(memory_.data())[i] = static_cast<float>(x);
    }
  }
  double get(std::size_t i) const {
    if (dtype_ == Dtype::float16)
      return static_cast<float>(static_cast<const __half*>(memory_.data())[i]);
    if (dtype_ == Dtype::bfloat16)
      return static_cast<float>(static_cast<const __nv_bfloat16*>(memory_.data())[i]);
    return static_cast<const float*>(memory_.data())[i];
  }
  void fill(Random& random, double size = 1) {
    for (std::size_t i = 0; i < count_; ++i) set(i, random.between(-size, size));
  }
  void* data() const { return memory_.data(); }
  std::size_t count() const { return count_; }
  Dtype dtype() const { return dtype_; }

 private:
  Dtype dtype_;
  std::size_t count_;
  emulator::DeviceMemory memory_;
};

template <class T>
class Table {
 public:
  explicit Table(const std::vector<T>& values) : memory_(values.size() * sizeof(T)) {
    std::memcpy(memory_.data(), values.data(), values.size() * sizeof(T));
  }
  const T* data() const { return static_cast<const T*>(memory_.data()); }

 private:
  emulator::DeviceMemory memory_;
};

// Every number near the truth: its own rounding, what `allowed` says of it, and a little of the size
// of all for the order in which float sums are taken.
inline void judge(const Array& got, const Numbers& truth, const Numbers& allowed = {}) {
  double square = 0;
  for (const double t : truth) square += t * t;
  const double size = std::sqrt(square / std::max<std::size_t>(truth.size(), 1));
  for (std::size_t i = 0; i < truth.size(); ++i) {
    const double error = std::abs(got.get(i) - truth[i]);
    const double more = allowed.empty() ? 0 : allowed[i];
    if (!(error <= rounding(got.dtype()) * std::abs(truth[i]) + more + 1e-5 * size))
      throw std::runtime_error("expected " + std::to_string(truth[i]) + ", got " +
                               std::to_string(got.get(i)) + " at " + std::to_string(i) + " of " +
                               std::to_string(truth.size()));
  }
}
