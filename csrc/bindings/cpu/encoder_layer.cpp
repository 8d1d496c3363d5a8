// Whole encoder layers on the CPU: bound to their weights once, called with what changes.
#include "cpu/encoder_layer.h"

#include <variant>

#include "bindings/cpu/call.h"

namespace secateurs::bindings {

namespace {

using cpu::EncoderLayer;
using cpu::EncoderLayers;
using cpu::Norm;
using cpu::PackedLinear;
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// The weights of one layer, in the dtype they are of.
struct Weights {
  std::variant<EncoderLayer<float>, EncoderLayer<bf16>> layer;
};

template <class T>
PackedLinear<T> typed(const PackedLinear<void>& w) {
  if (!w.n) return {};
  if (w.scales)
    check_int8_blocks(w.n, w.k, w.rows, w.bk, w.bn);
  else
    check_blocks<T>(w.n, w.k, w.rows, w.bk, w.bn);
  return {w.values, w.scales, w.indptr, w.indices, w.n,
          w.k,      w.rows,   w.bk,     w.bn,      static_cast<const T*>(w.bias)};
}

template <class T>
Norm<T> typed(const Norm<void>& norm) {
  return {static_cast<const T*>(norm.weight), static_cast<const T*>(norm.bias), norm.eps};
}

template <class T>
EncoderLayer<T> weights_of(std::int64_t d, const PackedLinear<void>& qkv,
                           const PackedLinear<void>& output, const PackedLinear<void>& up,
                           const PackedLinear<void>& down, const Norm<void>& attention_norm,
                           const Norm<void>& ffn_norm, std::int64_t heads, std::int64_t kv_heads,
                           std::int64_t dim, Address kv_of, Activation activation) {
  EncoderLayer<T> layer{};
  layer.d = d;
  layer.qkv = typed<T>(qkv);
  layer.output = typed<T>(output);
  layer.up = typed<T>(up);
  layer.down = typed<T>(down);
  layer.attention_norm = typed<T>(attention_norm);
  layer.ffn_norm = typed<T>(ffn_norm);
  layer.heads = heads;
  layer.kv_heads = kv_heads;
  layer.dim = dim;
  layer.kv_of = at<const std::int32_t>(kv_of);
  layer.activation = activation;
  return layer;
}

Weights weights(int dtype, std::int64_t d, const PackedLinear<void>& qkv,
                const PackedLinear<void>& output, const PackedLinear<void>& up,
                const PackedLinear<void>& down, const Norm<void>& attention_norm,
                const Norm<void>& ffn_norm, std::int64_t heads, std::int64_t kv_heads,
                std::int64_t dim, Address kv_of, int activation) {
  if (d < 0 || heads < 0 || kv_heads < 0 || dim < 0)
    throw std::invalid_argument("expected sizes of zero or more");
  if (activation < 0 || activation >= count_of<Activation>)
    throw std::invalid_argument("expected the number of an activation, got " +
                                std::to_string(activation));
  const auto make = [&](auto element) -> Weights {
    return Weights{weights_of<decltype(element)>(d, qkv, output, up, down, attention_norm, ffn_norm,
                                                 heads, kv_heads, dim, kv_of,
                                                 static_cast<Activation>(activation))};
  };
  return dtype == static_cast<int>(Dtype::float32) ? make(float{}) : make(bf16{});
}

struct LayersCall {
  PyObject* layers;
  int isa;
  const void* x;
  std::int64_t x_stride, batch, tokens;
  const bool* key_mask;
  void* y;
  int threads;
};

// The layers of a call, copied: other threads may be in a call of their own.
template <class T>
std::vector<EncoderLayer<T>> layers_of(const py::sequence& known) {
  std::vector<EncoderLayer<T>> layers;
  for (const py::handle each : known) {
    const auto* layer = std::get_if<EncoderLayer<T>>(&each.cast<const Weights&>().layer);
    if (!layer || (!layers.empty() && layer->d != layers[0].d))
      throw std::invalid_argument("expected layers of one dtype and one d");
    check_heads(layer->kv_of, layer->heads, layer->kv_heads);
    layers.push_back(*layer);
  }
  return layers;
}

py::object encoder_layers(const Arguments& arguments) {
  using C = LayersCall;
  static const Fields fields(std::array{
      Field<C>{"layers", [](C& call, PyObject* value) { call.layers = value; }},
      field<C, &C::isa>("isa"),
      field<C, &C::x>("x"),
      field<C, &C::x_stride>("x_stride"),
      field<C, &C::batch>("batch"),
      field<C, &C::tokens>("tokens"),
      field<C, &C::key_mask>("key_mask"),
      field<C, &C::y>("y"),
      field<C, &C::threads>("threads"),
  });
  const C call = arguments.fill(fields);
  if (call.batch < 0 || call.tokens < 0 || call.threads < 1)
    throw std::invalid_argument("expected sizes of zero or more");
  const auto known = py::handle(call.layers).cast<py::sequence>();
  if (!known.size()) throw std::invalid_argument("expected one layer or more");
  const cpu::Kernels& chosen = kernels(call.isa);
  const auto run = [&](const auto& first) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(first.qkv.bias)>>;
    const EncoderLayers<T> problem{
        layers_of<T>(known), static_cast<const T*>(call.x), call.x_stride, call.batch, call.tokens,
        call.key_mask,       static_cast<T*>(call.y),       call.threads};
    const py::gil_scoped_release released;
    cpu::encoder_layers(chosen, problem);
  };
  std::visit(run, known[0].cast<const Weights&>().layer);
  return py::str(chosen.name);
}

}  // namespace

void register_encoder_layer(py::module_& m) {
  using namespace py::literals;
  py::class_<PackedLinear<void>>(m, "PackedLinear")
      .def(py::init<>())
      .def(py::init([](Address values, Address scales, Address indptr, Address indices,
                       std::int64_t n, std::int64_t k, std::int64_t rows, std::int64_t bk,
                       std::int64_t bn, Address bias) {
             return PackedLinear<void>{at<const void>(values),
                                       at<const float>(scales),
                                       at<const std::int32_t>(indptr),
                                       at<const std::int32_t>(indices),
                                       n,
                                       k,
                                       rows,
                                       bk,
                                       bn,
                                       at<const void>(bias)};
           }),
           py::kw_only(), "values"_a, "scales"_a, "indptr"_a, "indices"_a, "n"_a, "k"_a, "rows"_a,
           "bk"_a, "bn"_a, "bias"_a);
  py::class_<Norm<void>>(m, "Norm").def(py::init([](Address weight, Address bias, float eps) {
                                          return Norm<void>{at<const void>(weight),
                                                            at<const void>(bias), eps};
                                        }),
                                        py::kw_only(), "weight"_a, "bias"_a, "eps"_a);
  py::class_<Weights>(m, "EncoderLayer")
      .def(py::init(&weights), py::kw_only(), "dtype"_a, "d"_a, "qkv"_a, "output"_a, "up"_a,
           "down"_a, "attention_norm"_a, "ffn_norm"_a, "heads"_a, "kv_heads"_a, "dim"_a, "kv_of"_a,
           "activation"_a);
  def<encoder_layers>(m, "encoder_layers",
                      "Runs EncoderLayers in turn, whose tensors must still be there.");
}

}  // namespace secateurs::bindings
