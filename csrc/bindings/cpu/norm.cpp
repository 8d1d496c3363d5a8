// Norms on the CPU.
#include "bindings/cpu/call.h"

namespace secateurs::bindings {

namespace {

template <class T>
Call<cpu::AddNorm<T>> add_norm_call(const Arguments& arguments) {
  using C = Call<cpu::AddNorm<T>>;
  static const Fields fields(
      joined(choice_fields<C>(), std::array{
                                     field<C, &C::x>("x"),
                                     field<C, &C::x_stride>("x_stride"),
                                     field<C, &C::m>("m"),
                                     field<C, &C::d>("d"),
                                     field<C, &C::residual>("residual"),
                                     field<C, &C::residual_stride>("residual_stride"),
                                     field<C, &C::weight>("weight"),
                                     field<C, &C::bias>("bias"),
                                     field<C, &C::eps>("eps"),
                                     field<C, &C::rms>("rms"),
                                     field<C, &C::sum>("sum"),
                                     field<C, &C::y>("y"),
                                     field<C, &C::threads>("threads"),
                                 }));
  const C call = arguments.fill(fields);
  if (call.m < 0 || call.d < 0 || call.threads < 1)
    throw std::invalid_argument("expected sizes of zero or more, got m=" + std::to_string(call.m) +
                                " d=" + std::to_string(call.d));
  return call;
}

py::object add_norm(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = add_norm_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.add_norm(call);
    else
      chosen.add_norm_bf16(call);
    return chosen.name;
  });
}

}  // namespace

void register_norm(py::module_& m) {
  def<add_norm>(m, "add_norm", "Runs AddNorm of csrc/cpu/problems.h.");
}

}  // namespace secateurs::bindings
