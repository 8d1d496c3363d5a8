// Python's view of the CUDA kernels: pointers, sizes and a stream in; errors out as sentences.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cuda/add_norm/add_norm.h"
#include "cuda/attention/attention.h"
#include "cuda/device.h"
#include "cuda/library_linear/library_linear.h"
#include "cuda/sparse_linear/sparse_linear.h"
#include "cuda/stacked_linear/stacked_linear.h"

namespace py = pybind11;
using namespace py::literals;
using namespace secateurs::cuda;

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(const std::string& name) {
  if (name == "float16") return DType::float16;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float32") return DType::float32;
  throw std::invalid_argument("expected float16, bfloat16 or float32, got " + name);
}

// (device, stream), as torch numbers and addresses them.
using Place = std::pair<int, Address>;

Launch launch_on(const Place& place) {
  return {place.first, reinterpret_cast<cudaStream_t>(place.second)};
}

// (bias, activation, gate, residual, y, m, n); 0: without.
using Finish = std::tuple<Address, int, Address, Address, Address, std::int64_t, std::int64_t>;

Epilogue epilogue_of(const Finish& f) {
  const auto& [bias, activation, gate, residual, y, m, n] = f;
  if (activation < 0 || activation > static_cast<int>(Activation::silu))
    throw std::invalid_argument("expected the number of an activation, got " +
                                std::to_string(activation));
  return {at<const void>(bias),
          static_cast<Activation>(activation),
          at<const void>(gate),
          at<const void>(residual),
          at<void>(y),
          m,
          n};
}

// (values, indptr, indices, rows, blocks, bn, bk)
using Stacks = std::tuple<Address, Address, Address, int, int, int, int>;

StackedLinear stacked(const std::string& dtype, Address x, std::int64_t x_stride,
                      const Stacks& weight, const Finish& finish) {
  const auto& [values, indptr, indices, rows, blocks, bn, bk] = weight;
  return {at<const void>(x),
          x_stride,
          at<const void>(values),
          at<const std::int32_t>(indptr),
          at<const std::int32_t>(indices),
          rows,
          blocks,
          bn,
          bk,
          epilogue_of(finish),
          dtype_of(dtype)};
}

// How block_sparse_linear and vector_linear cut a problem: rows of a tile, parts, and how many floats
// of working memory that takes.
std::tuple<int, int, std::int64_t> cut_linear(int device, std::int64_t m, int rows, int blocks,
                                              int bn, int bk) {
  StackedLinear p{};
  p.rows = rows;
  p.blocks = blocks;
  p.bn = bn;
  p.bk = bk;
  p.epilogue.m = m;
  const Cut how = cut(p, multiprocessors(device));
  return {how.bm, how.parts, partial_sums(p, how)};
}

using Run = void (*)(const StackedLinear&, const Cut&, const Launch&);

template <Run run>
void stacked_linear(const Place& place, const std::string& dtype, Address x, std::int64_t x_stride,
                    const Stacks& weight, const Finish& finish, std::pair<int, int> how,
                    Address partial) {
  StackedLinear p = stacked(dtype, x, x_stride, weight, finish);
  p.partial = at<float>(partial);
  const auto [bm, parts] = how;
  const py::gil_scoped_release released;
  const OnDevice on(place.first);
  run(p, {bm, parts, (p.epilogue.m + bm - 1) / bm}, launch_on(place));
}

// The same of sparse_linear.
std::tuple<int, int, std::int64_t> cut_sparse_linear(int device, std::int64_t m, std::int64_t n,
                                                     int k) {
  SparseLinear p{};
  p.epilogue.m = m;
  p.epilogue.n = n;
  p.k = k;
  const Cut how = cut(p, multiprocessors(device));
  return {how.bm, how.parts, partial_sums(p, how)};
}

void run_sparse_linear(const Place& place, const std::string& dtype, Address x,
                       std::int64_t x_stride, int k, Address values, Address kept,
                       const Finish& finish, std::pair<int, int> how, Address partial) {
  const SparseLinear p{at<const void>(x),
                       x_stride,
                       at<const void>(values),
                       at<const std::uint32_t>(kept),
                       k,
                       epilogue_of(finish),
                       dtype_of(dtype),
                       at<float>(partial)};
  const auto [bm, parts] = how;
  const py::gil_scoped_release released;
  const OnDevice on(place.first);
  sparse_linear(p, {bm, parts, (p.epilogue.m + bm - 1) / bm}, launch_on(place));
}

// sizes: p, q, patterns, ones.
void run_library_linear(const Place& place, const std::string& dtype, Address x,
                        std::int64_t x_stride, int k, Address values, Address codes,
                        Address library, const std::array<int, 4>& sizes, const Finish& finish) {
  const auto [rows, columns, patterns, ones] = sizes;
  const LibraryLinear p{at<const void>(x),
                        x_stride,
                        at<const void>(values),
                        at<const std::uint8_t>(codes),
                        at<const bool>(library),
                        k,
                        rows,
                        columns,
                        patterns,
                        ones,
                        epilogue_of(finish),
                        dtype_of(dtype)};
  const py::gil_scoped_release released;
  const OnDevice on(place.first);
  library_linear(p, launch_on(place));
}

// arrays: x, residual, weight, bias, sum, y; 0: without.
void run_add_norm(const Place& place, const std::string& dtype,
                  const std::array<Address, 6>& arrays, float eps, bool rms, std::int64_t rows,
                  int width) {
  const auto [x, residual, weight, bias, sum, y] = arrays;
  const AddNorm p{at<const void>(x),
                  at<const void>(residual),
                  at<const void>(weight),
                  at<const void>(bias),
                  eps,
                  rms,
                  at<void>(sum),
                  at<void>(y),
                  rows,
                  width,
                  dtype_of(dtype)};
  const py::gil_scoped_release released;
  const OnDevice on(place.first);
  add_norm(p, launch_on(place));
}

// A tensor [batch, heads, length, dim] with contiguous rows: address and the other strides.
using Heads = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t>;
// (indptr, indices, partial, masks, block, rows, per head); 0: without.
using Pattern = std::tuple<Address, Address, Address, Address, int, int, bool>;

Attention::Strides strides(const Heads& t) {
  return {std::get<1>(t), std::get<2>(t), std::get<3>(t)};
}

// (queries of a tile, heads that share one, parts)
using Shares = std::tuple<int, int, int>;

// How attention cuts a problem, and how many floats of working memory that takes. sizes: batch,
// heads, key/value heads, queries, keys, dim; block: of the pattern, 0: without; apart: heads of one
// key/value head may not share tiles; seen: keys of a query.
std::pair<Shares, std::int64_t> cut_attention(int device, const std::array<int, 6>& sizes,
                                              int block, bool apart, std::int64_t seen) {
  Attention p{};
  std::tie(p.batch, p.heads, p.kv_heads, p.queries, p.keys, p.dim) = std::tuple_cat(sizes);
  p.pattern.block = block;
  p.pattern.per_head = apart;
  const AttentionCut how = cut(p, seen, multiprocessors(device));
  return {{how.queries, how.heads, how.parts}, partial_sums(p, how)};
}

void run_attention(const Place& place, const std::string& dtype, const Heads& q, const Heads& k,
                   const Heads& v, const std::array<int, 6>& sizes, Address kv_of, Address key_mask,
                   bool causal, float scale, const Pattern& pattern, Address out,
                   const Shares& shares, Address working) {
  Attention p{};
  p.q = at<const void>(std::get<0>(q));
  p.k = at<const void>(std::get<0>(k));
  p.v = at<const void>(std::get<0>(v));
  p.q_stride = strides(q);
  p.k_stride = strides(k);
  p.v_stride = strides(v);
  std::tie(p.batch, p.heads, p.kv_heads, p.queries, p.keys, p.dim) = std::tuple_cat(sizes);
  p.kv_of = at<const std::int32_t>(kv_of);
  p.key_mask = at<const bool>(key_mask);
  p.causal = causal;
  p.scale = scale;
  const auto& [indptr, indices, partial, masks, block, rows, per_head] = pattern;
  p.pattern = {at<const std::int32_t>(indptr),
               at<const std::int32_t>(indices),
               at<const std::int32_t>(partial),
               at<const bool>(masks),
               block,
               rows,
               per_head};
  p.out = at<void>(out);
  p.dtype = dtype_of(dtype);
  p.partial = at<float>(working);
  const auto [tile, heads, parts] = shares;
  const py::gil_scoped_release released;
  const OnDevice on(place.first);
  attention(p, {tile, heads, parts}, launch_on(place));
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of secateurs. Imports on any machine; a GPU is needed only to run.";
  m.def("build_info", [] {
    return py::dict("version"_a = SECATEURS_VERSION, "commit"_a = SECATEURS_COMMIT,
                    "compiler"_a = SECATEURS_COMPILER, "toolkit"_a = toolkit(),
                    "archs"_a = SECATEURS_CUDA_ARCHS);
  });
  m.def("runtime_version", &runtime_version);
  m.def("driver_version", &driver_version,
        "CUDA version of the installed driver as (major, minor); (0, 0) without one.");
  m.def(
      "devices",
      [] {
        py::list found;
        for (const auto& d : devices())
          found.append(py::dict("name"_a = d.name, "capability"_a = d.capability,
                                "multiprocessors"_a = d.multiprocessors, "memory"_a = d.memory));
        return found;
      },
      "The GPUs in sight. Raises RuntimeError with a sentence where CUDA cannot be used.");
  m.def("cut_attention", &cut_attention);
  m.def("cut_linear", &cut_linear);
  m.def("cut_sparse_linear", &cut_sparse_linear);
  m.def("block_sparse_linear", &stacked_linear<&block_sparse_linear>);
  m.attr("widest_norm") = WIDEST_NORM;
  m.def("add_norm", &run_add_norm);
  m.def("attention", &run_attention);
  m.def("library_linear", &run_library_linear);
  m.def("sparse_linear", &run_sparse_linear);
  m.def("vector_linear", &stacked_linear<&vector_linear>);
}
