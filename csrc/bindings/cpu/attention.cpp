// Attention on the CPU.
#include "bindings/cpu/call.h"

namespace secateurs::bindings {

namespace {

// With the number of key/value heads, which kernels take from kv_of, to check it.
template <class T>
struct AttentionCall : Call<cpu::Attention<T>> {
  std::int64_t kv_heads;
};

template <class T>
AttentionCall<T> attention_call(const Arguments& arguments) {
  using C = AttentionCall<T>;
  using P = cpu::BlockPattern;
  static const Fields fields(
      joined(choice_fields<C>(), std::array{
                                     field<C, &C::q>("q"),
                                     strides<C, &C::q_stride>("q_stride"),
                                     field<C, &C::k>("k"),
                                     strides<C, &C::k_stride>("k_stride"),
                                     field<C, &C::v>("v"),
                                     strides<C, &C::v_stride>("v_stride"),
                                     field<C, &C::batch>("batch"),
                                     field<C, &C::heads>("heads"),
                                     field<C, &C::kv_heads>("kv_heads"),
                                     field<C, &C::queries>("queries"),
                                     field<C, &C::keys>("keys"),
                                     field<C, &C::dim>("dim"),
                                     field<C, &C::kv_of>("kv_of"),
                                     field<C, &C::key_mask>("key_mask"),
                                     field<C, &C::mask>("mask"),
                                     strides<C, &C::mask_stride>("mask_stride"),
                                     field<C, &C::causal>("causal"),
                                     field<C, &C::scale>("scale"),
                                     field<C, &C::pattern, &P::indptr>("pattern_indptr"),
                                     field<C, &C::pattern, &P::indices>("pattern_indices"),
                                     field<C, &C::pattern, &P::partial>("pattern_partial"),
                                     field<C, &C::pattern, &P::masks>("pattern_masks"),
                                     field<C, &C::pattern, &P::block>("pattern_block"),
                                     field<C, &C::pattern, &P::rows>("pattern_rows"),
                                     field<C, &C::pattern, &P::per_head>("pattern_per_head"),
                                     field<C, &C::short_products>("short_products"),
                                     field<C, &C::out>("out"),
                                     field<C, &C::threads>("threads"),
                                 }));
  const C call = arguments.fill(fields);
  if (call.batch < 0 || call.heads < 0 || call.queries < 0 || call.keys < 0 || call.dim < 0 ||
      call.threads < 1)
    throw std::invalid_argument("expected sizes of zero or more");
  check_heads(call.kv_of, call.heads, call.kv_heads);
  const auto [block, rows] = std::pair(call.pattern.block, call.pattern.rows);
  if (call.pattern.indptr && ((block != 16 && block != 32 && block != 64 && block != 128) ||
                              rows != (call.queries + block - 1) / block))
    throw std::invalid_argument("expected a pattern in blocks of 16, 32, 64 or 128, got " +
                                std::to_string(rows) + " rows of blocks of " +
                                std::to_string(block) + " for " + std::to_string(call.queries) +
                                " queries");
  return call;
}

py::object attention(const Arguments& arguments) {
  return on_dtype(arguments, [&](auto element) {
    using T = decltype(element);
    const auto call = attention_call<T>(arguments);
    const cpu::Kernels& chosen = kernels(call.isa);
    const py::gil_scoped_release released;
    if constexpr (std::is_same_v<T, float>)
      chosen.attention(call);
    else
      chosen.attention_bf16(call);
    return chosen.name;
  });
}

}  // namespace

void register_attention(py::module_& m) {
  def<attention>(m, "attention", "Runs Attention of csrc/cpu/problems.h.");
}

}  // namespace secateurs::bindings
