// The instruction set, the dtype and the checks that the calls of all CPU kernels share.
#pragma once

#include <string>

#include "bindings/named.h"
#include "cpu/dispatch.h"

namespace secateurs::bindings {

using cpu::bf16;

// A problem as Python describes it: with the number of the instruction set that solves it.
template <class Problem>
struct Call : Problem {
  int isa;
  Dtype dtype;
};

inline const cpu::Kernels& kernels(int isa) { return *cpu::isas().at(isa).kernels; }

// Calls `run` with an element of the dtype that the arguments name. Returns what it returns: the
// instruction set that ran, for tests to hold against the one asked for.
template <class Run>
py::object on_dtype(const Arguments& arguments, const Run& run) {
  Dtype dtype;
  read(arguments.at("dtype"), dtype);
  if (dtype != Dtype::float32 && dtype != Dtype::bfloat16)
    throw std::invalid_argument("expected the number of float32 or bfloat16");
  return py::str(dtype == Dtype::float32 ? run(float{}) : run(bf16{}));
}

template <class Call>
constexpr auto choice_fields() {
  return std::array{field<Call, &Call::isa>("isa"), field<Call, &Call::dtype>("dtype")};
}

// Throws std::invalid_argument unless the blocks of a weight cover n outputs and k inputs.
template <class T>
void check_blocks(std::int64_t n, std::int64_t k, std::int64_t rows, std::int64_t bk,
                  std::int64_t bn) {
  if (bn != 16 && bn != 32 && bn != 64)
    throw std::invalid_argument("expected blocks of 16, 32 or 64 outputs, got " +
                                std::to_string(bn));
  if (n < 0 || k < 0 || n > rows * bn || (bk ? bk < k && k % bk : k))
    throw std::invalid_argument("expected sizes that fit together, got n=" + std::to_string(n) +
                                " k=" + std::to_string(k) + " rows=" + std::to_string(rows) +
                                " bk=" + std::to_string(bk));
  if (sizeof(T) == sizeof(bf16) && bk % 2)
    throw std::invalid_argument("expected blocks of pairs of inputs");
}

// The same for blocks of codes.
inline void check_int8_blocks(std::int64_t n, std::int64_t k, std::int64_t rows, std::int64_t bk,
                              std::int64_t bn) {
  check_blocks<float>(n, k, rows, bk, bn);
  if (bk % 32 || (bk > 32 && bk % cpu::scaled_together && bk < k))
    throw std::invalid_argument(
        "expected blocks of 32 inputs, of a multiple of 64, or of all of them, got " +
        std::to_string(bk));
}

inline void check_heads(const std::int32_t* kv_of, std::int64_t heads, std::int64_t kv_heads) {
  for (std::int64_t h = 0; h < heads; ++h)
    if (kv_of[h] < 0 || kv_of[h] >= kv_heads)
      throw std::invalid_argument("expected kv_of to name one of " + std::to_string(kv_heads) +
                                  " key/value heads, got " + std::to_string(kv_of[h]) +
                                  " for head " + std::to_string(h));
}

void register_attention(py::module_& m);
void register_encoder_layer(py::module_& m);
void register_linear(py::module_& m);
void register_norm(py::module_& m);

}  // namespace secateurs::bindings
