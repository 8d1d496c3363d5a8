// Norms on GPUs.
#include "bindings/cuda/call.h"
#include "cuda/add_norm/add_norm.h"

namespace secateurs::bindings {

namespace {

py::object add_norm(const Arguments& arguments) {
  using P = cuda::AddNorm;
  using C = Call<P, Whole>;
  static const Fields fields(
      joined(launch_fields<C, P>(), std::array{
                                        field<C, &C::problem, &P::x>("x"),
                                        field<C, &C::problem, &P::residual>("residual"),
                                        field<C, &C::problem, &P::weight>("weight"),
                                        field<C, &C::problem, &P::bias>("bias"),
                                        field<C, &C::problem, &P::eps>("eps"),
                                        field<C, &C::problem, &P::rms>("rms"),
                                        field<C, &C::problem, &P::sum>("sum"),
                                        field<C, &C::problem, &P::y>("y"),
                                        field<C, &C::problem, &P::rows>("rows"),
                                        field<C, &C::problem, &P::width>("width"),
                                    }));
  const C call = arguments.fill(fields);
  return launched(call, [&] { cuda::add_norm(call.problem, call.launch); });
}

}  // namespace

void register_norm(py::module_& m) {
  m.attr("widest_norm") = cuda::WIDEST_NORM;
  def<add_norm>(m, "add_norm", "Runs AddNorm of csrc/cuda/add_norm.");
}

}  // namespace secateurs::bindings
