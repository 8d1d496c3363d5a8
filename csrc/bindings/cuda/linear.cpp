// Linear operations on GPUs.
#include "bindings/cuda/call.h"
#include "cuda/library_linear/library_linear.h"
#include "cuda/sparse_linear/sparse_linear.h"
#include "cuda/stacked_linear/stacked_linear.h"

namespace secateurs::bindings {

namespace {

using cuda::Cut;
using cuda::Epilogue;
using cuda::LibraryLinear;
using cuda::SparseLinear;
using cuda::StackedLinear;

// What every linear takes beside its weight.
template <class C, class P>
constexpr auto linear_fields() {
  return joined(launch_fields<C, P>(),
                std::array{
                    field<C, &C::problem, &P::epilogue, &Epilogue::bias>("bias"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::activation>("activation"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::multiplier>("multiplier"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::residual>("residual"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::y>("y"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::m>("m"),
                    field<C, &C::problem, &P::epilogue, &Epilogue::n>("n"),
                    field<C, &C::problem, &P::x>("x"),
                    field<C, &C::problem, &P::x_stride>("x_stride"),
                    field<C, &C::problem, &P::values>("values"),
                });
}

template <class C, class P>
constexpr auto cut_fields() {
  return std::array{
      field<C, &C::cut, &Cut::bm>("bm"),
      field<C, &C::cut, &Cut::parts>("parts"),
      field<C, &C::problem, &P::partial>("partial"),
  };
}

template <class C>
void count_tiles(C& call) {
  if (call.cut.bm < 1) throw std::invalid_argument("expected tiles of one row or more");
  call.cut.tiles_m = (call.problem.epilogue.m + call.cut.bm - 1) / call.cut.bm;
}

// Rows of a tile, parts, and how many floats of working memory they take.
template <class Problem>
py::object told(const Problem& p, int device) {
  const cuda::OnDevice on(device);
  const Cut how = cut(p, device);
  return py::make_tuple(how.bm, how.parts, partial_sums(p, how));
}

py::object cut_linear(const Arguments& arguments) {
  using P = StackedLinear;
  using C = Call<P, Whole>;
  static const Fields fields(std::array{
      field<C, &C::launch, &cuda::Launch::device>("device"),
      field<C, &C::problem, &P::dtype>("dtype"),
      field<C, &C::problem, &P::epilogue, &Epilogue::m>("m"),
      field<C, &C::problem, &P::rows>("rows"),
      field<C, &C::problem, &P::blocks>("blocks"),
      field<C, &C::problem, &P::bn>("bn"),
      field<C, &C::problem, &P::bk>("bk"),
      field<C, &C::problem, &P::k>("k"),
  });
  const C call = arguments.fill(fields);
  return told(call.problem, call.launch.device);
}

py::object cut_sparse_linear(const Arguments& arguments) {
  using P = SparseLinear;
  using C = Call<P, Whole>;
  static const Fields fields(std::array{
      field<C, &C::launch, &cuda::Launch::device>("device"),
      field<C, &C::problem, &P::dtype>("dtype"),
      field<C, &C::problem, &P::epilogue, &Epilogue::m>("m"),
      field<C, &C::problem, &P::epilogue, &Epilogue::n>("n"),
      field<C, &C::problem, &P::k>("k"),
  });
  const C call = arguments.fill(fields);
  return told(call.problem, call.launch.device);
}

py::object cut_library_linear(const Arguments& arguments) {
  using P = LibraryLinear;
  using C = Call<P, Whole>;
  static const Fields fields(std::array{
      field<C, &C::launch, &cuda::Launch::device>("device"),
      field<C, &C::problem, &P::dtype>("dtype"),
      field<C, &C::problem, &P::epilogue, &Epilogue::m>("m"),
      field<C, &C::problem, &P::epilogue, &Epilogue::n>("n"),
      field<C, &C::problem, &P::k>("k"),
      field<C, &C::problem, &P::p>("p"),
      field<C, &C::problem, &P::q>("q"),
      field<C, &C::problem, &P::patterns>("patterns"),
      field<C, &C::problem, &P::ones>("ones"),
  });
  const C call = arguments.fill(fields);
  return told(call.problem, call.launch.device);
}

using Run = void (*)(const StackedLinear&, const Cut&, const cuda::Launch&);

template <Run run>
py::object stacked_linear(const Arguments& arguments) {
  using P = StackedLinear;
  using C = Call<P, Cut>;
  static const Fields fields(joined(linear_fields<C, P>(), cut_fields<C, P>(),
                                    std::array{
                                        field<C, &C::problem, &P::indptr>("indptr"),
                                        field<C, &C::problem, &P::indices>("indices"),
                                        field<C, &C::problem, &P::rows>("rows"),
                                        field<C, &C::problem, &P::blocks>("blocks"),
                                        field<C, &C::problem, &P::bn>("bn"),
                                        field<C, &C::problem, &P::bk>("bk"),
                                        field<C, &C::problem, &P::k>("k"),
                                    }));
  C call = arguments.fill(fields);
  count_tiles(call);
  return launched(call, [&] { run(call.problem, call.cut, call.launch); });
}

py::object sparse_linear(const Arguments& arguments) {
  using P = SparseLinear;
  using C = Call<P, Cut>;
  static const Fields fields(joined(linear_fields<C, P>(), cut_fields<C, P>(),
                                    std::array{
                                        field<C, &C::problem, &P::kept>("kept"),
                                        field<C, &C::problem, &P::k>("k"),
                                    }));
  C call = arguments.fill(fields);
  count_tiles(call);
  return launched(call, [&] { cuda::sparse_linear(call.problem, call.cut, call.launch); });
}

py::object library_linear(const Arguments& arguments) {
  using P = LibraryLinear;
  using C = Call<P, Cut>;
  static const Fields fields(joined(linear_fields<C, P>(), cut_fields<C, P>(),
                                    std::array{
                                        field<C, &C::problem, &P::codes>("codes"),
                                        field<C, &C::problem, &P::library>("library"),
                                        field<C, &C::problem, &P::k>("k"),
                                        field<C, &C::problem, &P::p>("p"),
                                        field<C, &C::problem, &P::q>("q"),
                                        field<C, &C::problem, &P::patterns>("patterns"),
                                        field<C, &C::problem, &P::ones>("ones"),
                                    }));
  C call = arguments.fill(fields);
  count_tiles(call);
  return launched(call, [&] { cuda::library_linear(call.problem, call.cut, call.launch); });
}

}  // namespace

void register_linear(py::module_& m) {
  def<cut_linear>(m, "cut_linear",
                  "How block_sparse_linear and vector_linear cut a problem: rows of a tile, parts, "
                  "floats of working memory.");
  def<cut_sparse_linear>(m, "cut_sparse_linear", "The same of sparse_linear.");
  def<cut_library_linear>(m, "cut_library_linear", "The same of library_linear.");
  def<stacked_linear<&cuda::block_sparse_linear>>(
      m, "block_sparse_linear", "Runs StackedLinear of csrc/cuda/stacked_linear.");
  def<stacked_linear<&cuda::vector_linear>>(
      m, "vector_linear", "Runs StackedLinear of csrc/cuda/stacked_linear on single inputs.");
  def<sparse_linear>(m, "sparse_linear", "Runs SparseLinear of csrc/cuda/sparse_linear.");
  def<library_linear>(m, "library_linear", "Runs LibraryLinear of csrc/cuda/library_linear.");
}

}  // namespace secateurs::bindings
