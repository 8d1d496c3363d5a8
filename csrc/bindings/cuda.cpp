// Python's view of the CUDA module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/device.h"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of secateurs. Imports on any machine; a GPU is needed only to run.";
  m.def("build_info", [] {
    return py::dict("version"_a = SECATEURS_VERSION, "commit"_a = SECATEURS_COMMIT,
                    "compiler"_a = SECATEURS_COMPILER, "toolkit"_a = secateurs::cuda::toolkit(),
                    "archs"_a = SECATEURS_CUDA_ARCHS);
  });
  m.def("runtime_version", &secateurs::cuda::runtime_version);
  m.def("driver_version", &secateurs::cuda::driver_version,
        "CUDA version of the installed driver as (major, minor); (0, 0) without one.");
  m.def(
      "devices",
      [] {
        py::list devices;
        for (const auto& d : secateurs::cuda::devices())
          devices.append(py::dict("name"_a = d.name, "capability"_a = d.capability,
                                  "multiprocessors"_a = d.multiprocessors, "memory"_a = d.memory));
        return devices;
      },
      "The GPUs in sight. Raises RuntimeError with a sentence where CUDA cannot be used.");
}
