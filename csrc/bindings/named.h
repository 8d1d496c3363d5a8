// Functions that fill a plain struct from keyword arguments, each field by its name.
//
// A call is a struct of pointers, sizes and strides, and a table that says which argument is which
// field. Names come interned and mostly in the order of the table, so that filling a struct of twenty
// fields costs twenty conversions and as many comparisons of pointers: no dictionary is made, and no
// argument can be mistaken for its neighbour.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/activation.h"
#include "common/dtype.h"

namespace secateurs::bindings {

namespace py = pybind11;

// How many values an enum has, whose numbers Python was told.
template <class Enum>
constexpr int count_of = 0;
template <>
inline constexpr int count_of<Activation> = std::size(ACTIVATION_NAMES);
template <>
inline constexpr int count_of<Dtype> = std::size(DTYPE_NAMES);

// Converts an argument into the field it is for.
template <class T>
void read(PyObject* value, T& field) {
  if constexpr (std::is_pointer_v<T>) {
    field = reinterpret_cast<T>(static_cast<std::uintptr_t>(PyLong_AsUnsignedLongLong(value)));
  } else if constexpr (std::is_same_v<T, bool>) {
    field = PyObject_IsTrue(value) == 1;
  } else if constexpr (std::is_floating_point_v<T>) {
    field = static_cast<T>(PyFloat_AsDouble(value));
  } else {
    const long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    if constexpr (std::is_enum_v<T>) {
      if (number < 0 || number >= count_of<T>)
        throw std::invalid_argument("expected the number of one of " + std::to_string(count_of<T>) +
                                    " activations or dtypes, got " + std::to_string(number));
    } else if (number < std::numeric_limits<T>::min() || number > std::numeric_limits<T>::max()) {
      throw std::invalid_argument("expected a smaller number, got " + std::to_string(number));
    }
    field = static_cast<T>(number);
    return;
  }
  if (PyErr_Occurred()) throw py::error_already_set();
}

// One argument of a call: its name, and what writes it into the struct.
template <class Call>
struct Field {
  const char* name;
  void (*set)(Call&, PyObject*);
};

// The field at the end of a path of members: field<Call, &Call::epilogue, &Epilogue::bias>("bias").
template <class Call, auto... path>
constexpr Field<Call> field(const char* name) {
  return {name, [](Call& call, PyObject* value) { read(value, (call.*....*path)); }};
}

// The first three strides of a tensor, for a struct of batch, head and row; the last one is 1.
template <class Call, auto... path>
constexpr Field<Call> strides(const char* name) {
  return {name, [](Call& call, PyObject* value) {
            auto& to = (call.*....*path);
            if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 4)
              throw std::invalid_argument("expected the strides of four dimensions");
            read(PyTuple_GET_ITEM(value, 0), to.batch);
            read(PyTuple_GET_ITEM(value, 1), to.head);
            read(PyTuple_GET_ITEM(value, 2), to.row);
          }};
}

template <class Call, std::size_t... counts>
constexpr auto joined(const std::array<Field<Call>, counts>&... parts) {
  std::array<Field<Call>, (counts + ...)> all{};
  std::size_t count = 0;
  const auto append = [&](const auto& part) {
    for (const Field<Call>& each : part) all[count++] = each;
  };
  (append(parts), ...);
  return all;
}

// The table of a call's fields, with their names as Python keeps them.
template <class Call, std::size_t count>
class Fields {
 public:
  explicit Fields(const std::array<Field<Call>, count>& fields) : fields_(fields) {
    for (std::size_t i = 0; i < count; ++i) {
      names_[i] = PyUnicode_InternFromString(fields[i].name);
      if (!names_[i]) throw py::error_already_set();
    }
  }

  const Field<Call>* find(PyObject* name, std::size_t guess) const {
    if (guess < count && names_[guess] == name) return &fields_[guess];
    for (std::size_t i = 0; i < count; ++i)
      if (names_[i] == name) return &fields_[i];
    for (std::size_t i = 0; i < count; ++i)
      if (PyUnicode_Compare(names_[i], name) == 0) return &fields_[i];
    return nullptr;
  }

  std::string names() const {
    std::string all;
    for (const Field<Call>& each : fields_)
      all += (all.empty() ? "" : ", ") + std::string(each.name);
    return all;
  }

 private:
  std::array<Field<Call>, count> fields_;
  std::array<PyObject*, count> names_;  // live as long as the process does
};

template <class Call, std::size_t count>
Fields(const std::array<Field<Call>, count>&) -> Fields<Call, count>;

// The keyword arguments of one call.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t positional, PyObject* names)
      : values_(values), names_(names), count_(names ? PyTuple_GET_SIZE(names) : 0) {
    if (positional) throw py::type_error("expected keyword arguments only");
  }

  // Fills all fields of a struct; Python lets no argument be given twice.
  template <class Call, std::size_t count>
  Call fill(const Fields<Call, count>& fields) const {
    Call call{};
    for (Py_ssize_t i = 0; i < count_; ++i) {
      PyObject* name = PyTuple_GET_ITEM(names_, i);
      const Field<Call>* known = fields.find(name, i);
      if (!known || count_ != count)
        throw py::type_error("expected " + fields.names() + ", got " +
                             py::repr(names_).cast<std::string>());
      known->set(call, values_[i]);
    }
    if (count_ != count) throw py::type_error("expected " + fields.names() + ", got none");
    return call;
  }

  // The argument of this name, which is looked for first of all.
  PyObject* at(const char* name) const {
    for (Py_ssize_t i = 0; i < count_; ++i)
      if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names_, i), name) == 0)
        return values_[i];
    throw py::type_error(std::string("expected an argument ") + name);
  }

 private:
  PyObject* const* values_;
  PyObject* names_;
  Py_ssize_t count_;
};

// Makes a Python function of `function`, which takes Arguments and returns a py::object.
template <auto function>
void def(py::module_& m, const char* name, const char* doc) {
  using Entry = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
  constexpr Entry entry = [](PyObject*, PyObject* const* values, Py_ssize_t positional,
                             PyObject* names) -> PyObject* {
    try {
      return function(Arguments(values, positional, names)).release().ptr();
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::out_of_range& error) {
      PyErr_SetString(PyExc_IndexError, error.what());
    } catch (const std::logic_error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  };
  static PyMethodDef method{name,
                            reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry)),
                            METH_FASTCALL | METH_KEYWORDS, doc};
  m.add_object(name, py::reinterpret_steal<py::object>(PyCFunction_NewEx(
                         &method, nullptr, py::object(m.attr("__name__")).ptr())));
}

// {"name": number} of the values of an enum, for as many as there are names.
template <std::size_t count>
py::dict numbered(const char* const (&names)[count], std::size_t first = count) {
  py::dict numbers;
  for (std::size_t i = 0; i < first; ++i) numbers[names[i]] = i;
  return numbers;
}

}  // namespace secateurs::bindings
