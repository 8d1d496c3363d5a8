// Linear operations on the CPU.
#include "bindings/cpu/call.h"

namespace secateurs::bindings {

namespace {

using cpu::BlockSparseLinear;
using cpu::Int8Linear;
using cpu::Int8VectorLinear;
using cpu::LibraryLinear;
using cpu::PatternLinear;

// What every linear takes beside its weight.
template <class C>
constexpr auto linear_fields() {
  return joined(choice_fields<C>(), std::array{
                                        field<C, &C::x>("x"),
                                        field<C, &C::x_stride>("x_stride"),
                                        field<C, &C::m>("m"),
                                        field<C, &C::n>("n"),
                                        field<C, &C::k>("k"),
                                        field<C, &C::values>("values"),
                                        field<C, &C::bias>("bias"),
                                        field<C, &C::activation>("activation"),
                                        field<C, &C::multiplier>("multiplier"),
                                        field<C, &C::multiplier_stride>("multiplier_stride"),
                                        field<C, &C::residual>("residual"),
                                        field<C, &C::residual_stride>("residual_stride"),
                                        field<C, &C::y>("y"),
                                        field<C, &C::threads>("threads"),
                                    });
}

template <class C>
void check_sizes(const C& call) {
  if (call.m < 0 || call.n < 0 || call.k < 0 || call.threads < 1)
    throw std::invalid_argument("expected sizes of zero or more, got m=" + std::to_string(call.m) +
                                " n=" + std::to_string(call.n) + " k=" + std::to_string(call.k));
}

// Groups of outputs that keep the same inputs.
void check_vectors(std::int64_t v) {
  if (v < 16 || v % 16)
    throw std::invalid_argument("expected groups of a multiple of 16 outputs, got " +
                                std::to_string(v));
}

template <class T>
Call<BlockSparseLinear<T>> block_sparse_call(const Arguments& arguments) {
  using C = Call<BlockSparseLinear<T>>;
  static const Fields fields(joined(linear_fields<C>(), std::array{
                                                            field<C, &C::indptr>("indptr"),
                                                            field<C, &C::indices>("indices"),
                                                            field<C, &C::rows>("rows"),
                                                            field<C, &C::bk>("bk"),
                                                            field<C, &C::bn>("bn"),
                                                        }));
  const C call = arguments.fill(fields);
  check_sizes(call);
  check_blocks<T>(call.n, call.k, call.rows, call.bk, call.bn);
  return call;
}

template <class T>
Call<Int8Linear<T>> int8_call(const Arguments& arguments) {
  using C = Call<Int8Linear<T>>;
  static const Fields fields(joined(linear_fields<C>(), std::array{
                                                            field<C, &C::scales>("scales"),
                                                            field<C, &C::indptr>("indptr"),
                                                            field<C, &C::indices>("indices"),
                                                            field<C, &C::rows>("rows"),
                                                            field<C, &C::bk>("bk"),
                                                            field<C, &C::bn>("bn"),
                                                        }));
  const C call = arguments.fill(fields);
  check_sizes(call);
  check_int8_blocks(call.n, call.k, call.rows, call.bk, call.bn);
  return call;
}

template <class T>
Call<Int8VectorLinear<T>> int8_vector_call(const Arguments& arguments) {
  using C = Call<Int8VectorLinear<T>>;
  static const Fields fields(joined(linear_fields<C>(), std::array{
                                                            field<C, &C::scales>("scales"),
                                                            field<C, &C::places>("places"),
                                                            field<C, &C::indptr>("indptr"),
                                                            field<C, &C::starts>("starts"),
                                                            field<C, &C::groups>("groups"),
                                                            field<C, &C::v>("v"),
                                                        }));
  const C call = arguments.fill(fields);
  check_sizes(call);
  check_vectors(call.v);
  if (call.groups < 0 || call.n != call.groups * call.v)
    throw std::invalid_argument("expected sizes that fit together, got n=" +
                                std::to_string(call.n) + " groups=" + std::to_string(call.groups));
  return call;
}

template <class T>
Call<PatternLinear<T>> pattern_call(const Arguments& arguments) {
  using C = Call<PatternLinear<T>>;
  static const Fields fields(joined(linear_fields<C>(), std::array{
                                                            field<C, &C::columns>("columns"),
                                                            field<C, &C::indptr>("indptr"),
                                                            field<C, &C::groups>("groups"),
                                                            field<C, &C::kept>("kept"),
                                                            field<C, &C::v>("v"),
                                                        }));
  const C call = arguments.fill(fields);
  check_sizes(call);
  check_vectors(call.v);
  if (call.groups < 0 || call.kept < 0 || call.n != call.groups * call.v ||
      (!call.indptr && call.kept > call.k))
    throw std::invalid_argument(
        "expected sizes that fit together, got n=" + std::to_string(call.n) +
        " k=" + std::to_string(call.k) + " groups=" + std::to_string(call.groups) +
        " kept=" + std::to_string(call.kept));
  return call;
}

// A library's blocks are always four inputs wide for the kernel: what Python says is checked.
template <class T>
struct LibraryCall : Call<LibraryLinear<T>> {
  std::int64_t block_inputs;
};

template <class T>
LibraryCall<T> library_call(const Arguments& arguments) {
  using C = LibraryCall<T>;
  static const Fields fields(
      joined(linear_fields<C>(), std::array{
                                     field<C, &C::codes>("codes"),
                                     field<C, &C::library>("library"),
                                     field<C, &C::patterns>("patterns"),
                                     field<C, &C::block_outputs>("block_outputs"),
                                     field<C, &C::block_inputs>("block_inputs"),
                                     field<C, &C::ones>("ones"),
                                 }));
  const C call = arguments.fill(fields);
  check_sizes(call);
  if (call.block_inputs != 4 || (call.block_outputs != 1 && call.block_outputs != 4) || call.m > 16)
    throw std::invalid_argument("expected blocks of 4 x 4 or 1 x 4 and up to 16 rows, got " +
                                std::to_string(call.block_outputs) + " x " +
                                std::to_string(call.block_inputs) + " and " +
                                std::to_string(call.m));
  if (call.k % 4 || call.n % call.block_outputs || call.patterns < 0 || call.patterns > 16)
    throw std::invalid_argument(
        "expected sizes that fit together, got n=" + std::to_string(call.n) +
        " k=" + std::to_string(call.k) + " patterns=" + std::to_string(call.patterns));
  return call;
}

py::object block_sparse_linear(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = block_sparse_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.block_sparse_linear(call);
    else
      chosen.block_sparse_linear_bf16(call);
    return chosen.name;
  });
}

py::object int8_linear(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = int8_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.int8_linear(call);
    else
      chosen.int8_linear_bf16(call);
    return chosen.name;
  });
}

py::object int8_vector_linear(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = int8_vector_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.int8_vector_linear(call);
    else
      chosen.int8_vector_linear_bf16(call);
    return chosen.name;
  });
}

py::object pattern_linear(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = pattern_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.pattern_linear(call);
    else
      chosen.pattern_linear_bf16(call);
    return chosen.name;
  });
}

py::object library_linear(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = library_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.library_linear(call);
    else
      chosen.library_linear_bf16(call);
    return chosen.name;
  });
}

int pattern_together(int isa, int dtype) {
  const cpu::Kernels& chosen = kernels(isa);
  return dtype == static_cast<int>(Dtype::float32) ? 1 : chosen.pattern_together_bf16;
}

}  // namespace

void register_linear(py::module_& m) {
  def<block_sparse_linear>(m, "block_sparse_linear",
                           "Runs BlockSparseLinear of csrc/cpu/problems.h.");
  def<int8_linear>(m, "int8_linear", "Runs Int8Linear of csrc/cpu/problems.h.");
  def<int8_vector_linear>(m, "int8_vector_linear", "Runs Int8VectorLinear of csrc/cpu/problems.h.");
  def<pattern_linear>(m, "pattern_linear", "Runs PatternLinear of csrc/cpu/problems.h.");
  def<library_linear>(m, "library_linear", "Runs LibraryLinear of csrc/cpu/problems.h.");
  m.def("pattern_together", &pattern_together, py::arg("isa"), py::arg("dtype"),
        "How many inputs of an output pattern_linear wants side by side in its values.");
}

}  // namespace secateurs::bindings
