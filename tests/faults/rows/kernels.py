"""Faults of the CPU kernels, each of which takes a build."""

from __future__ import annotations

from fault import faults_in

INT8 = "ops/test_int8_linear.py"
KERNELS = "csrc/cpu/kernels"
VECTORS = "ops/test_int8_vector_linear.py"
LINEAR = "ops/test_block_sparse_linear.py"
NORM = "ops/test_add_norm.py"

FAULTS = (
    *faults_in(
        f"{KERNELS}/norm/add_norm.h",
        ("if (residual) v = v + load(residual + j, n...);", "", f"{NORM} -k any_length"),
        ("const F shift = set1(mean), scale", "const F shift = set1(0), scale",
         f"{NORM} -k any_length"),
        ("sums[1] = part(sums[1], j, static_cast<int>(d - j))",
         "sums[1] = part(zero(), j, static_cast<int>(d - j))", f"{NORM} -k any_length"),
        ("p.residual + i * p.residual_stride", "p.residual + i * p.x_stride", f"{NORM} -k strided"),
        ("__builtin_sqrtf(square + p.eps)", "(__builtin_sqrtf(square) + p.eps)",
         f"{NORM} -k under_the_root"),
    ),
    *faults_in(
        f"{KERNELS}/linear/epilogue.h",
        ("load(multiplier + i * multiplier_stride + v * W, n...)",
         "load(multiplier + i * y_stride + v * W, n...)", f"{LINEAR} -k strided"),
        ("load(residual + i * residual_stride + v * W, n...)",
         "load(residual + i * multiplier_stride + v * W, n...)", f"{LINEAR} -k stride_of_its_own"),
        ("load(p.bias + column + v * W, n...)", "load(p.bias + v * W, n...)",
         f"{LINEAR} -k epilogue"),
    ),
    *faults_in(
        f"{KERNELS}/math.h",
        ("0.121945344f,  0.0945855156f", "0.121945344f,  0.0945955156f",
         f"{LINEAR} -k activation_accuracy"),
    ),
    *faults_in(
        f"{KERNELS}/linear/solver.h",
        ("words - w0 < depth ? words : w0 + depth", "w0 + depth - 1",
         f"{LINEAR} -k chunks_of_inputs"),
    ),
    *faults_in(
        f"{KERNELS}/attention/head.h",
        ("p.causal ? i + p.keys - p.queries : p.keys - 1", "p.keys - 1",
         "ops/test_attention.py -k lengths"),
        ("p.v + b * p.v_stride.batch + p.kv_of[h] * p.v_stride.head",
         "p.v + b * p.v_stride.batch + h * p.v_stride.head",
         "ops/test_attention.py -k uneven_heads"),
    ),
    *faults_in(
        f"{KERNELS}/attention/panels.h",
        ("word(weigh(j), zero())", "word(weigh(j), weigh(j))",
         "ops/test_attention.py -k short_products"),
        ("in_pairs && j + 1 < count ? or_zeros(head.value(slot + j + 1)) : zeros", "zeros",
         "ops/test_attention.py -k short_products"),
        ("left - 2 * words", "left", "ops/test_attention.py -k short_products"),
        ("masked || cut || !(unit > 0)", "masked || cut",
         "ops/test_attention.py -k negative_scale"),
        ("      unit = 1;\n", "", "ops/test_attention.py -k explicit_mask"),
    ),
    *faults_in(
        f"{KERNELS}/linear/int8_product.h",
        ("at() == word + half_words", "true", f"{INT8} -k any_number_of_rows"),
        ("start_of = met.both ? 2 : met.second", "start_of = met.both ? 2 : 0",
         f"{INT8} -k whole_numbers"),
        ("p.depth ? p.blocks : 0", "p.depth ? p.blocks - 1 : 0", f"{INT8} -k packed_dense"),
    ),
    *faults_in(
        f"{KERNELS}/linear/int8_tile_product.h",
        ("start_of = met.both ? 2 : met.second", "start_of = met.both ? 2 : 0",
         f"{INT8} -k whole_numbers"),
        ("met.both ? group_words : half_words) * p.w_stride", "group_words) * p.w_stride",
         f"{INT8} -k whole_numbers"),
        ("group + (met.second ? half_words : 0)", "group", f"{INT8} -k whole_numbers"),
        ("tile_load<B1>(w + 16, w_bytes)", "tile_load<B1>(w, w_bytes)",
         f"{INT8} -k whole_numbers"),
        ("p.accumulate ? load", "false ? load", f"{INT8} -k chunks_of_inputs"),
    ),
    *faults_in(
        f"{KERNELS}/linear/quantise.h",
        ("return top <= 1 ? 0 : __builtin_nanf(\"\");", "return 0;", f"{INT8} -k bad_input"),
        ("set1(127 / top)", "set1(126 / top)", f"{INT8} -k whole_numbers"),
    ),
    *faults_in(
        f"{KERNELS}/linear/int8_vector_product.h",
        ("part.starts + g * part.v + j * W", "part.starts + j * W", f"{VECTORS} -k whole_numbers"),
        ("part.starts += output;", "", f"{VECTORS} -k any_number_of_rows"),
        ("code ^= 128", "code ^= 127", f"{VECTORS} -k whole_numbers"),
        ("if (!words) continue;", "", f"{VECTORS} -k nothing_is_kept"),
        ("x.codes(part.first + g)", "x.codes(g)", f"{VECTORS} -k chunks"),
        ("x.scales(part.first + g)", "x.scales(g)", f"{VECTORS} -k chunks"),
        ("for (; k < words; ++k) step(k, sum[0]);", "", f"{VECTORS} -k whole_numbers"),
    ),
    *faults_in(
        f"{KERNELS}/linear/gather_tiles.h",
        ("part.w + output * side", "part.w", "ops/test_pattern_linear.py -k any_number_of_rows"),
    ),
    *faults_in(
        f"{KERNELS}/linear/tile_product.h",
        ("depth(p.bk % 32 ? 8 : 16)", "depth(16)", f"{LINEAR} -k any_number_of_rows"),
    ),
    *faults_in(
        f"{KERNELS}/linear/kept_inputs.h",
        ("from = cut(steps, chunks, chunk)", "from = 0",
         "ops/test_pattern_linear.py -k chunks_of_inputs"),
    ),
    *faults_in(
        "csrc/cpu/vectors/avx2.h",
        ("_mm256_or_si256(inside, outside)", "inside", f"{VECTORS} -k whole_numbers"),
        ("_mm256_add_epi32(sum.v, _mm256_madd_epi16(w02, x02))",
         "_mm256_adds_epi16(sum.v, _mm256_madd_epi16(w02, x02))", f"{INT8} -k saturate"),
    ),
    *faults_in(
        "csrc/cpu/encoder_layer.cpp",
        ("problem.scales = w.scales;", "problem.scales = w.scales + 1;",
         "ops/test_int8_layer.py -k parts"),
        ("call.key_mask + first * call.tokens", "call.key_mask",
         "ops/test_encoder_layer.py -k in_turn"),
        ("call.x + first * tokens * call.x_stride", "call.x + first * tokens",
         "ops/test_encoder_layer.py -k in_turn"),
        ("      x = Chunk<T>(", "      Chunk<T>(", "ops/test_encoder_layer.py -k in_turn"),
    ),
)  # fmt: skip
