// Python's view of the CPU kernels: pointers, sizes and strides in; errors out as sentences.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#ifdef _OPENMP
  #include <omp.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/encoder_layer.h"

namespace py = pybind11;
using namespace py::literals;
using namespace secateurs::cpu;

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

const Kernels& kernels(int isa) { return *isas().at(isa).kernels; }

std::string isa_name(int isa) { return kernels(isa).name; }

void check_activation(int activation) {
  if (activation < 0 || activation > static_cast<int>(Activation::silu))
    throw std::invalid_argument("expected the number of an activation, got " +
                                std::to_string(activation));
}

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

template <class T>
BlockSparseLinear<T> linear(Address x, std::int64_t x_stride, std::int64_t m, std::int64_t n,
                            std::int64_t k, Address values, Address indptr, Address indices,
                            std::int64_t rows, std::int64_t bk, std::int64_t bn, Address bias,
                            int activation, Address gate, std::int64_t gate_stride,
                            Address residual, std::int64_t residual_stride, Address y,
                            int threads) {
  if (m < 0 || threads < 1)
    throw std::invalid_argument("expected sizes of zero or more, got m=" + std::to_string(m));
  check_blocks<T>(n, k, rows, bk, bn);
  check_activation(activation);
  return {at<const T>(x),
          x_stride,
          m,
          n,
          k,
          at<const T>(values),
          at<const std::int32_t>(indptr),
          at<const std::int32_t>(indices),
          rows,
          bk,
          bn,
          at<const T>(bias),
          static_cast<Activation>(activation),
          at<const T>(gate),
          at<const T>(residual),
          gate_stride,
          residual_stride,
          at<T>(y),
          threads};
}

// Returns the name of the instruction set that ran, for tests to hold against the one asked for.
template <class... Args>
const char* block_sparse_linear(int isa, int dtype, Args... args) {
  const Kernels& chosen = kernels(isa);
  if (static_cast<Dtype>(dtype) == Dtype::bf16) {
    const auto problem = linear<bf16>(args...);
    const py::gil_scoped_release released;
    chosen.block_sparse_linear_bf16(problem);
  } else {
    const auto problem = linear<float>(args...);
    const py::gil_scoped_release released;
    chosen.block_sparse_linear(problem);
  }
  return chosen.name;
}

using Triple = std::array<std::int64_t, 3>;

Strides strides(const Triple& s) { return {s[0], s[1], s[2]}; }

using Pattern = std::tuple<Address, Address, Address, Address, std::int64_t, std::int64_t, bool>;

BlockPattern block_pattern(const Pattern& p) {
  const auto [indptr, indices, partial, masks, block, rows, per_head] = p;
  return {at<const std::int32_t>(indptr),
          at<const std::int32_t>(indices),
          at<const std::int32_t>(partial),
          at<const bool>(masks),
          block,
          rows,
          per_head};
}

void check_heads(Address kv_of, std::int64_t heads, std::int64_t kv_heads) {
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int32_t g = at<const std::int32_t>(kv_of)[h];
    if (g < 0 || g >= kv_heads)
      throw std::invalid_argument("expected kv_of to name one of " + std::to_string(kv_heads) +
                                  " key/value heads, got " + std::to_string(g) + " for head " +
                                  std::to_string(h));
  }
}

const char* attention(int isa, int dtype, Address q, const Triple& q_stride, Address k,
                      const Triple& k_stride, Address v, const Triple& v_stride, std::int64_t batch,
                      std::int64_t heads, std::int64_t kv_heads, std::int64_t queries,
                      std::int64_t keys, std::int64_t dim, Address kv_of, Address key_mask,
                      Address mask, const Triple& mask_stride, bool causal, float scale,
                      const Pattern& pattern, Address out, int threads) {
  if (batch < 0 || heads < 0 || queries < 0 || keys < 0 || dim < 0 || threads < 1)
    throw std::invalid_argument("expected sizes of zero or more");
  check_heads(kv_of, heads, kv_heads);
  const BlockPattern blocks = block_pattern(pattern);
  const std::int64_t block = blocks.block;
  if (blocks.indptr && ((block != 16 && block != 32 && block != 64 && block != 128) ||
                        blocks.rows != (queries + block - 1) / block))
    throw std::invalid_argument("expected a pattern in blocks of 16, 32, 64 or 128, got " +
                                std::to_string(blocks.rows) + " rows of blocks of " +
                                std::to_string(block) + " for " + std::to_string(queries) +
                                " queries");
  const Kernels& chosen = kernels(isa);
  const py::gil_scoped_release released;
  const auto run = [&](auto kernel, auto element) {
    using T = decltype(element);
    kernel({at<const T>(q),
            at<const T>(k),
            at<const T>(v),
            strides(q_stride),
            strides(k_stride),
            strides(v_stride),
            batch,
            heads,
            queries,
            keys,
            dim,
            at<const std::int32_t>(kv_of),
            at<const bool>(key_mask),
            at<const float>(mask),
            strides(mask_stride),
            causal,
            scale,
            blocks,
            at<T>(out),
            threads});
  };
  if (dtype == static_cast<int>(Dtype::f32))
    run(chosen.attention, float{});
  else
    run(chosen.attention_bf16, bf16{});
  return chosen.name;
}

const char* pattern_linear(int isa, int dtype, Address x, std::int64_t x_stride, std::int64_t m,
                           std::int64_t k, Address values, Address columns, Address indptr,
                           std::int64_t groups, std::int64_t kept, std::int64_t v, Address bias,
                           int activation, Address gate, std::int64_t gate_stride, Address residual,
                           std::int64_t residual_stride, Address y, int threads) {
  if (v < 16 || v % 16)
    throw std::invalid_argument("expected groups of a multiple of 16 outputs, got " +
                                std::to_string(v));
  if (m < 0 || k < 0 || groups < 0 || kept < 0 || (!indptr && kept > k) || threads < 1)
    throw std::invalid_argument("expected sizes that fit together, got m=" + std::to_string(m) +
                                " k=" + std::to_string(k) + " groups=" + std::to_string(groups) +
                                " kept=" + std::to_string(kept));
  check_activation(activation);
  const Kernels& chosen = kernels(isa);
  const py::gil_scoped_release released;
  const auto run = [&](auto kernel, auto element) {
    using T = decltype(element);
    kernel({at<const T>(x), x_stride, m, groups * v, k, at<const T>(values),
            at<const std::int32_t>(columns), at<const std::int32_t>(indptr), groups, kept, v,
            at<const T>(bias), static_cast<Activation>(activation), at<const T>(gate),
            at<const T>(residual), gate_stride, residual_stride, at<T>(y), threads});
  };
  if (static_cast<Dtype>(dtype) == Dtype::f32)
    run(chosen.pattern_linear, float{});
  else
    run(chosen.pattern_linear_bf16, bf16{});
  return chosen.name;
}

const char* library_linear(int isa, int dtype, Address x, std::int64_t x_stride, std::int64_t m,
                           std::int64_t k, Address values, Address codes, Address library,
                           std::int64_t rows, std::int64_t patterns, std::int64_t p, std::int64_t q,
                           std::int64_t ones, Address bias, int activation, Address gate,
                           std::int64_t gate_stride, Address residual, std::int64_t residual_stride,
                           Address y, int threads) {
  if (q != 4 || (p != 1 && p != 4) || m > 16)
    throw std::invalid_argument("expected blocks of 4 x 4 or 1 x 4 and up to 16 rows, got " +
                                std::to_string(p) + " x " + std::to_string(q) + " and " +
                                std::to_string(m));
  if (m < 0 || k < 0 || k % q || rows < 0 || patterns < 0 || patterns > 16 || threads < 1)
    throw std::invalid_argument("expected sizes that fit together, got m=" + std::to_string(m) +
                                " k=" + std::to_string(k) + " rows=" + std::to_string(rows) +
                                " patterns=" + std::to_string(patterns));
  check_activation(activation);
  const Kernels& chosen = kernels(isa);
  const py::gil_scoped_release released;
  const auto run = [&](auto kernel, auto element) {
    using T = decltype(element);
    kernel({at<const T>(x), x_stride, m, rows * p, k, at<const T>(values),
            at<const std::uint8_t>(codes), at<const bool>(library), patterns, p, ones,
            at<const T>(bias), static_cast<Activation>(activation), at<const T>(gate),
            at<const T>(residual), gate_stride, residual_stride, at<T>(y), threads});
  };
  if (static_cast<Dtype>(dtype) == Dtype::f32)
    run(chosen.library_linear, float{});
  else
    run(chosen.library_linear_bf16, bf16{});
  return chosen.name;
}

int pattern_together(int isa, int dtype) {
  return static_cast<Dtype>(dtype) == Dtype::f32 ? 1 : kernels(isa).pattern_together_bf16;
}

const char* add_norm(int isa, int dtype, Address x, std::int64_t x_stride, std::int64_t m,
                     std::int64_t d, Address residual, std::int64_t residual_stride, Address weight,
                     Address bias, float eps, bool rms, Address sum, Address y, int threads) {
  if (m < 0 || d < 0 || threads < 1)
    throw std::invalid_argument("expected sizes of zero or more, got m=" + std::to_string(m) +
                                " d=" + std::to_string(d));
  const Kernels& chosen = kernels(isa);
  const py::gil_scoped_release released;
  const auto run = [&](auto kernel, auto element) {
    using T = decltype(element);
    kernel({at<const T>(x), x_stride, m, d, at<const T>(residual), residual_stride,
            at<const T>(weight), at<const T>(bias), eps, rms, at<T>(sum), at<T>(y), threads});
  };
  if (static_cast<Dtype>(dtype) == Dtype::f32)
    run(chosen.add_norm, float{});
  else
    run(chosen.add_norm_bf16, bf16{});
  return chosen.name;
}

// values, indptr, indices; n, k, rows, bk, bn; bias.
using Linear = std::tuple<Address, Address, Address, std::int64_t, std::int64_t, std::int64_t,
                          std::int64_t, std::int64_t, Address>;
using NormOperands = std::tuple<Address, Address, float>;  // weight, bias, eps

template <class T>
PackedLinear<T> packed_linear(const Linear& l) {
  const auto [values, indptr, indices, n, k, rows, bk, bn, bias] = l;
  if (!n) return {};
  check_blocks<T>(n, k, rows, bk, bn);
  return {at<const T>(values),
          at<const std::int32_t>(indptr),
          at<const std::int32_t>(indices),
          n,
          k,
          rows,
          bk,
          bn,
          at<const T>(bias)};
}

template <class T>
Norm<T> norm(const NormOperands& operands) {
  const auto [weight, bias, eps] = operands;
  return {at<const T>(weight), at<const T>(bias), eps};
}

const char* run_encoder_layer(int isa, int dtype, Address x, std::int64_t x_stride,
                              std::int64_t batch, std::int64_t tokens, std::int64_t d,
                              Address key_mask, Address y, int threads,
                              const std::array<Linear, 4>& linears,
                              const std::array<NormOperands, 2>& norms, std::int64_t heads,
                              std::int64_t kv_heads, std::int64_t dim, Address kv_of,
                              int activation) {
  if (batch < 0 || tokens < 0 || d < 0 || heads < 0 || kv_heads < 0 || dim < 0 || threads < 1)
    throw std::invalid_argument("expected sizes of zero or more");
  check_heads(kv_of, heads, kv_heads);
  check_activation(activation);
  const Kernels& chosen = kernels(isa);
  const auto run = [&](auto element) {
    using T = decltype(element);
    const auto [qkv, output, up, down] = linears;
    const EncoderLayer<T> layer{at<const T>(x),
                                x_stride,
                                batch,
                                tokens,
                                d,
                                packed_linear<T>(qkv),
                                packed_linear<T>(output),
                                packed_linear<T>(up),
                                packed_linear<T>(down),
                                norm<T>(norms[0]),
                                norm<T>(norms[1]),
                                heads,
                                kv_heads,
                                dim,
                                at<const std::int32_t>(kv_of),
                                at<const bool>(key_mask),
                                static_cast<Activation>(activation),
                                at<T>(y),
                                threads};
    const py::gil_scoped_release released;
    encoder_layer(chosen, layer);
  };
  if (static_cast<Dtype>(dtype) == Dtype::f32)
    run(float{});
  else
    run(bf16{});
  return chosen.name;
}

// How many threads a parallel region gets that does not ask for a number: the OpenMP runtime's own
// setting.
int default_threads() {
  int count = 1;
#ifdef _OPENMP
  #pragma omp parallel
  #pragma omp single
  count = omp_get_num_threads();
#endif
  return count;
}

}  // namespace

PYBIND11_MODULE(_C_cpu, m) {
  m.doc() = "CPU kernels of secateurs. Import torch first: it brings the OpenMP runtime.";
  m.def("build_info", [] {
    py::list names;
    for (const Isa& isa : isas()) names.append(isa.kernels->name);
    return py::dict("version"_a = SECATEURS_VERSION, "commit"_a = SECATEURS_COMMIT,
                    "compiler"_a = SECATEURS_COMPILER, "isas"_a = names);
  });
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Isa& isa : isas())
          if (isa.supported) names.push_back(isa.kernels->name);
        return names;
      },
      "Names of the instruction sets that this CPU runs, best first.");
  m.def("choose", &choose, "name"_a,
        "Number of the instruction set called `name`, or of the best one for an empty name.");
  m.def(
      "block_sparse_linear",
      &block_sparse_linear<Address, std::int64_t, std::int64_t, std::int64_t, std::int64_t, Address,
                           Address, Address, std::int64_t, std::int64_t, std::int64_t, Address, int,
                           Address, std::int64_t, Address, std::int64_t, Address, int>);
  m.def("attention", &attention);
  m.def("pattern_linear", &pattern_linear);
  m.def("library_linear", &library_linear);
  m.def("pattern_together", &pattern_together, "isa"_a, "dtype"_a,
        "How many inputs of an output pattern_linear wants side by side in its values.");
  m.def("add_norm", &add_norm);
  m.def("encoder_layer", &run_encoder_layer);
  m.def("isa_name", &isa_name, "isa"_a);
  m.def("default_threads", &default_threads, py::call_guard<py::gil_scoped_release>());
}
