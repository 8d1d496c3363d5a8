// Python's view of the CPU kernels: pointers, sizes and strides in; errors out as sentences.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#ifdef _OPENMP
  #include <omp.h>
#endif

#include "cpu/dispatch.h"

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

// Returns the name of the instruction set that ran, for tests to hold against the one asked for.
const char* block_sparse_linear(int isa, Address x, std::int64_t x_stride, std::int64_t m,
                                std::int64_t n, std::int64_t k, Address values, Address indptr,
                                Address indices, std::int64_t rows, std::int64_t bk,
                                std::int64_t bn, Address bias, int activation, Address gate,
                                std::int64_t gate_stride, Address residual,
                                std::int64_t residual_stride, Address y, int threads) {
  if (bn != 16 && bn != 32 && bn != 64)
    throw std::invalid_argument("expected blocks of 16, 32 or 64 outputs, got " +
                                std::to_string(bn));
  if (m < 0 || n < 0 || k < 0 || n > rows * bn || (bk ? k % bk : k) || threads < 1 ||
      activation < 0 || activation > static_cast<int>(Activation::silu))
    throw std::invalid_argument("expected sizes that fit together, got m=" + std::to_string(m) +
                                " n=" + std::to_string(n) + " k=" + std::to_string(k) +
                                " rows=" + std::to_string(rows) + " bk=" + std::to_string(bk));
  const Kernels& chosen = kernels(isa);
  const py::gil_scoped_release released;
  chosen.block_sparse_linear({at<const float>(x), x_stride, m, n, k, at<const float>(values),
                              at<const std::int32_t>(indptr), at<const std::int32_t>(indices), rows,
                              bk, bn, at<const float>(bias), static_cast<Activation>(activation),
                              at<const float>(gate), at<const float>(residual), gate_stride,
                              residual_stride, at<float>(y), threads});
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

const char* attention(int isa, int dtype, Address q, const Triple& q_stride, Address k,
                      const Triple& k_stride, Address v, const Triple& v_stride, std::int64_t batch,
                      std::int64_t heads, std::int64_t kv_heads, std::int64_t queries,
                      std::int64_t keys, std::int64_t dim, Address kv_of, Address key_mask,
                      Address mask, const Triple& mask_stride, bool causal, float scale,
                      const Pattern& pattern, Address out, int threads) {
  if (batch < 0 || heads < 0 || queries < 0 || keys < 0 || dim < 0 || threads < 1)
    throw std::invalid_argument("expected sizes of zero or more");
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int32_t g = at<const std::int32_t>(kv_of)[h];
    if (g < 0 || g >= kv_heads)
      throw std::invalid_argument("expected kv_of to name one of " + std::to_string(kv_heads) +
                                  " key/value heads, got " + std::to_string(g) + " for head " +
                                  std::to_string(h));
  }
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
  m.def("block_sparse_linear", &block_sparse_linear);
  m.def("attention", &attention);
  m.def("isa_name", &isa_name, "isa"_a);
  m.def("default_threads", &default_threads, py::call_guard<py::gil_scoped_release>());
}
