// What the calls of all CUDA kernels share: where they are launched, and the epilogue of linears.
#pragma once

#include "bindings/named.h"
#include "cuda/cut.h"
#include "cuda/epilogue.h"
#include "cuda/launch.h"

namespace secateurs::bindings {

// A problem as Python describes it: with the device and the stream, as torch numbers and addresses
// them, and how it is cut among thread blocks.
template <class Problem, class Cut>
struct Call {
  Problem problem;
  Cut cut;
  cuda::Launch launch;
};

// What a kernel that is not cut has in place of a cut.
struct Whole {};

template <class C, class Problem>
constexpr auto launch_fields() {
  return std::array{
      field<C, &C::launch, &cuda::Launch::device>("device"),
      field<C, &C::launch, &cuda::Launch::stream>("stream"),
      field<C, &C::problem, &Problem::dtype>("dtype"),
  };
}

// Calls `run`, which launches the kernel of a call, on its device and without the interpreter's lock.
template <class C, class Run>
py::object launched(const C& call, const Run& run) {
  {
    const py::gil_scoped_release released;
    const cuda::OnDevice on(call.launch.device);
    run();
  }
  return py::none();
}

void register_attention(py::module_& m);
void register_linear(py::module_& m);
void register_norm(py::module_& m);

}  // namespace secateurs::bindings
