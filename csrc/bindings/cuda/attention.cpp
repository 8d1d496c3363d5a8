// Attention on GPUs.
#include "cuda/attention/attention.h"

#include "bindings/cuda/call.h"

namespace secateurs::bindings {

namespace {

using cuda::Attention;
using cuda::AttentionCut;
using Pattern = Attention::Pattern;

template <class C>
constexpr auto size_fields() {
  return std::array{
      field<C, &C::problem, &Attention::batch>("batch"),
      field<C, &C::problem, &Attention::heads>("heads"),
      field<C, &C::problem, &Attention::kv_heads>("kv_heads"),
      field<C, &C::problem, &Attention::queries>("queries"),
      field<C, &C::problem, &Attention::keys>("keys"),
      field<C, &C::problem, &Attention::dim>("dim"),
      field<C, &C::problem, &Attention::pattern, &Pattern::block>("pattern_block"),
  };
}

// The keys that a query sees, and whether heads of one key/value head may not share tiles.
struct Seen {
  std::int64_t keys;
  bool apart;
};

py::object cut_attention(const Arguments& arguments) {
  using C = Call<Attention, Seen>;
  static const Fields fields(
      joined(size_fields<C>(), std::array{
                                   field<C, &C::launch, &cuda::Launch::device>("device"),
                                   field<C, &C::cut, &Seen::keys>("seen"),
                                   field<C, &C::cut, &Seen::apart>("apart"),
                               }));
  C call = arguments.fill(fields);
  call.problem.pattern.per_head = call.cut.apart;
  const AttentionCut how =
      cut(call.problem, call.cut.keys, cuda::multiprocessors(call.launch.device));
  return py::make_tuple(how.queries, how.heads, how.parts, partial_sums(call.problem, how));
}

py::object attention(const Arguments& arguments) {
  using P = Attention;
  using C = Call<P, AttentionCut>;
  static const Fields fields(
      joined(launch_fields<C, P>(), size_fields<C>(),
             std::array{
                 field<C, &C::problem, &P::q>("q"),
                 strides<C, &C::problem, &P::q_stride>("q_stride"),
                 field<C, &C::problem, &P::k>("k"),
                 strides<C, &C::problem, &P::k_stride>("k_stride"),
                 field<C, &C::problem, &P::v>("v"),
                 strides<C, &C::problem, &P::v_stride>("v_stride"),
                 field<C, &C::problem, &P::kv_of>("kv_of"),
                 field<C, &C::problem, &P::key_mask>("key_mask"),
                 field<C, &C::problem, &P::causal>("causal"),
                 field<C, &C::problem, &P::scale>("scale"),
                 field<C, &C::problem, &P::pattern, &Pattern::indptr>("pattern_indptr"),
                 field<C, &C::problem, &P::pattern, &Pattern::indices>("pattern_indices"),
                 field<C, &C::problem, &P::pattern, &Pattern::partial>("pattern_partial"),
                 field<C, &C::problem, &P::pattern, &Pattern::masks>("pattern_masks"),
                 field<C, &C::problem, &P::pattern, &Pattern::rows>("pattern_rows"),
                 field<C, &C::problem, &P::pattern, &Pattern::per_head>("pattern_per_head"),
                 field<C, &C::problem, &P::out>("out"),
                 field<C, &C::cut, &AttentionCut::queries>("tile_queries"),
                 field<C, &C::cut, &AttentionCut::heads>("tile_heads"),
                 field<C, &C::cut, &AttentionCut::parts>("parts"),
                 field<C, &C::problem, &P::partial>("partial"),
             }));
  const C call = arguments.fill(fields);
  return launched(call, [&] { cuda::attention(call.problem, call.cut, call.launch); });
}

}  // namespace

void register_attention(py::module_& m) {
  def<cut_attention>(
      m, "cut_attention",
      "How attention cuts a problem: queries of a tile, heads that share one, parts, "
      "floats of working memory.");
  def<attention>(m, "attention", "Runs Attention of csrc/cuda/attention.");
}

}  // namespace secateurs::bindings
