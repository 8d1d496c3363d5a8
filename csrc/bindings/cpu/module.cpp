// Python's view of the CPU kernels: pointers, sizes and strides in; errors out as sentences.
#include <pybind11/stl.h>

#ifdef _OPENMP
  #include <omp.h>
#endif

#include "bindings/cpu/call.h"

namespace {

namespace py = pybind11;
using namespace py::literals;
using namespace secateurs;

py::dict build_info() {
  py::list names;
  for (const cpu::Isa& isa : cpu::isas()) names.append(isa.kernels->name);
  return py::dict("version"_a = SECATEURS_VERSION, "commit"_a = SECATEURS_COMMIT,
                  "compiler"_a = SECATEURS_COMPILER, "isas"_a = names);
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const cpu::Isa& isa : cpu::isas())
    if (isa.supported) names.push_back(isa.kernels->name);
  return names;
}

std::string isa_name(int isa) { return bindings::kernels(isa).name; }

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
  m.attr("activations") = bindings::numbered(ACTIVATION_NAMES);
  m.attr("dtypes") = bindings::numbered(DTYPE_NAMES, 2);  // no kernel takes float16
  m.def("build_info", &build_info);
  m.def("isas", &isas, "Names of the instruction sets that this CPU runs, best first.");
  m.def("choose", &cpu::choose, "name"_a,
        "Number of the instruction set called `name`, or of the best one for an empty name.");
  m.def("isa_name", &isa_name, "isa"_a);
  m.def("default_threads", &default_threads, py::call_guard<py::gil_scoped_release>());
  bindings::register_linear(m);
  bindings::register_attention(m);
  bindings::register_norm(m);
  bindings::register_encoder_layer(m);
}
