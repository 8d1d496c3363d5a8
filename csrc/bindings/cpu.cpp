// Python's view of the CPU kernels: pointers, sizes and strides in; errors out as sentences.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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

// How many threads a parallel region really gets.
int threads_in_region(int threads) {
  int count = 1;
#ifdef _OPENMP
  #pragma omp parallel num_threads(threads)
  #pragma omp single
  count = omp_get_num_threads();
#endif
  (void)threads;
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
  m.def("isa_name", &isa_name, "isa"_a);
  m.def("threads_in_region", &threads_in_region, "threads"_a,
        py::call_guard<py::gil_scoped_release>());
}
