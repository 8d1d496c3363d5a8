// What the cases of all linear kernels share: the epilogue, in double and in memory.
#pragma once

#include <memory>

#include "cases/case.h"
#include "cuda/epilogue.h"

using secateurs::Activation;

struct Finish {
  Activation activation = Activation::none;
  bool bias = false, gate = false, residual = false;
};

inline double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::silu:
      return x / (1 + std::exp(-x));
  }
  return NAN;
}

// How the kernels' tiles go by the rows of x.
inline const char* rows_of(int m) {
  return m <= 16                            ? " few rows, "
         : m <= 64 || (m > 128 && m <= 192) ? " some rows, "
                                            : " many rows, ";
}

struct FinishArrays {
  Array bias, gate, residual, y;
  Finish finish;
  std::int64_t m, n;

  FinishArrays(std::int64_t m, std::int64_t n, Dtype dtype, Finish finish, Random& random)
      : bias(n, dtype),
        gate(m * n, dtype),
        residual(m * n, dtype),
        y(m * n, dtype),
        finish(finish),
        m(m),
        n(n) {
    bias.fill(random);
    gate.fill(random);
    residual.fill(random);
  }
  secateurs::cuda::Epilogue epilogue() const {
    return {finish.bias ? bias.data() : nullptr,
            finish.activation,
            finish.gate ? gate.data() : nullptr,
            finish.residual ? residual.data() : nullptr,
            y.data(),
            m,
            n};
  }
  // Judges y, given x [m, k] and the dense weight [n, k].
  void judge_product(const Numbers& x, const Numbers& weight, std::int64_t k) const {
    Numbers truth(m * n);
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (std::int64_t l = 0; l < k; ++l) sum += x[i * k + l] * weight[j * k + l];
        if (finish.bias) sum += bias.get(j);
        sum = activated(finish.activation, sum);
        if (finish.gate) sum *= gate.get(i * n + j);
        if (finish.residual) sum += residual.get(i * n + j);
        truth[i * n + j] = sum;
      }
    judge(y, truth);
  }
};
