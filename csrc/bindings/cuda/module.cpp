// Python's view of the CUDA kernels: pointers, sizes and a stream in; errors out as sentences.
#include <pybind11/stl.h>

#include "bindings/cuda/call.h"
#include "cuda/device.h"

namespace {

namespace py = pybind11;
using namespace py::literals;
using namespace secateurs;

py::dict build_info() {
  return py::dict("version"_a = SECATEURS_VERSION, "commit"_a = SECATEURS_COMMIT,
                  "compiler"_a = SECATEURS_COMPILER, "toolkit"_a = cuda::toolkit(),
                  "archs"_a = SECATEURS_CUDA_ARCHS);
}

py::list devices() {
  py::list all;
  for (const auto& d : cuda::devices())
    all.append(py::dict("name"_a = d.name, "capability"_a = d.capability,
                        "multiprocessors"_a = d.multiprocessors, "memory"_a = d.memory));
  return all;
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of secateurs. Imports on any machine; a GPU is needed only to run.";
  m.attr("activations") = bindings::numbered(ACTIVATION_NAMES);
  m.attr("dtypes") = bindings::numbered(DTYPE_NAMES);
  m.def("build_info", &build_info);
  m.def("runtime_version", &cuda::runtime_version);
  m.def("driver_version", &cuda::driver_version,
        "CUDA version of the installed driver as (major, minor); (0, 0) without one.");
  m.def("devices", &devices,
        "The GPUs in sight. Raises RuntimeError with a sentence where CUDA cannot be used.");
  bindings::register_linear(m);
  bindings::register_attention(m);
  bindings::register_norm(m);
}
