"""Faults to seed into the CUDA sources: the emulator must notice each of them.

Every fault replaces one piece of one file, an expression or whole statements, by another. All are
built into one program, `old` where the fault is off, and switched on one at a time.
"""

from __future__ import annotations

from pattern_faults import PATTERN_FAULTS
from seeded_fault import BARRIER, TILE, WAIT, Fault


def seeded(file: str, text: str) -> str:
    """The text of a file with all its faults in it, asleep."""
    places = []
    for number, fault in enumerate(FAULTS, 1):
        if fault.file == file:
            found = text.count(fault.behind + fault.old)
            if found != 1:
                raise ValueError(f"expected once in {file}, found {found} times: {fault.old!r}")
            places.append((text.index(fault.behind + fault.old) + len(fault.behind), number))
    for place, number in sorted(places, reverse=True):
        fault, on = FAULTS[number - 1], f"::emulator::fault == {number}"
        if fault.old.endswith(";"):
            both = f"if ({on}) {{ {fault.new} }} else {{ {fault.old} }}"
        else:
            both = f"({on} ? ({fault.new}) : ({fault.old}))"
        if not text.startswith(fault.old, place):
            raise ValueError(f"another fault in {file} overlaps {fault.old!r}")
        text = text[:place] + both + text[place + len(fault.old) :]
    return text


STACKED, ATTENTION, KEY_STACK = "stacked_linear.cuh", "attention.cu", "key_stack.cuh"
NORM = "add_norm.cu"
EPILOGUE, NUMBER = "epilogue.cuh", "number.cuh"
CUT, LAUNCH = "cut.h", "launch.h"
STACKS, LAUNCHER, VECTOR = "stacked_linear.cpp", "stacked_launcher.cuh", "vector_linear.cu"
AHEAD = "if (step + C::STAGES - 1 < steps) loader.load(step + C::STAGES - 1);"

FAULTS = (
    Fault(STACKED, "live ? at : 0", "at", "linear"),  # a dead copy from between
    # Linear: a barrier or a wait is missing, or waits for too little.
    Fault(STACKED, BARRIER, ";", "linear", True, behind=f"{WAIT}\n    "),
    Fault(STACKED, WAIT, "ptx::wait_copies<C::STAGES - 1>();", "linear"),
    Fault(
        STACKED, BARRIER, ";", "linear", True, behind="last copies landed with the last step.\n  "
    ),
    Fault(STACKED, BARRIER, ";", "linear", True, behind="lay_out<C>(sums, sum);\n    "),
    Fault(STACKED, BARRIER, ";", "linear", True, behind="land where the sums are.\n    "),
    Fault(STACKED, "ptx::commit_copies();", ";", "linear", behind=f"{AHEAD}\n    "),
    # Copies that go where they should not, or come from there.
    Fault(STACKED, "step % C::STAGES * C::STAGE", "step % (C::STAGES - 1) * C::STAGE", "linear"),
    Fault(STACKED, "x + swizzled<C::X_CHUNKS>(row, chunk)", "x + t", "linear"),
    Fault(STACKED, "w + swizzled<C::W_CHUNKS>(k, chunk)", "w + t", "linear"),
    Fault(STACKED, "step * C::STEP + k < inputs", "true", "linear", behind="live = "),
    Fault(
        STACKED, "at >= 0 && m < (C::TURNED ? s.p.x_stride : s.p.epilogue.m)", "at >= 0", "linear"
    ),
    Fault(STACKED, "(k & ((1 << log) - 1))", "0", "block_sparse"),
    Fault(STACKED, "look_up(step + 1);", "look_up(step);", "linear"),
    Fault(STACKED, "(loader.inputs + C::STEP - 1) / C::STEP", "loader.inputs / C::STEP", "linear"),
    Fault(STACKED, "(i * C::WK + wk) * 16", "(i * C::WK) * 16", "few"),
    Fault(STACKED, "begin + (k >> log)", "k >> log", "linear"),
    Fault(STACKED, "std::int64_t{begin} << s.log_bk", "std::int64_t{0}", "linear"),
    Fault(STACKED, "blockIdx.x / (GROUP * s.p.rows)", "0", "linear"),
    # Single inputs, gathered or from a turned x.
    Fault(STACKED, "row + i * ROWS_ON >= rows", "false", "vector"),
    Fault(STACKED, "max(column[0], 0)", "0", "vector"),
    Fault(STACKED, "there ? numbers[i] : from_float<typename C::T>(0)", "numbers[i]", "vector"),
    Fault(STACKED, "loader.store(0);", ";", "vector"),
    Fault(STACKED, "loader.store(step + 1);", "loader.store(step);", "vector"),
    Fault(STACKED, "loader.look_up(step + 3);", "loader.look_up(step + 2);", "vector"),
    Fault(STACKED, "swizzled<C::X_CHUNKS>(row, k / 8) * 8 + k % 8", "row * C::STEP + k", "vector"),
    Fault(VECTOR, BARRIER, ";", "vector"),
    Fault(VECTOR, "first_m + row < p.m ? min(8, p.k - first_k - k) : 0", "8", "vector"),
    Fault(VECTOR, "first_k + k >= p.k || first_m + m >= p.wide", "first_k + k >= p.k", "vector"),
    Fault(VECTOR, "blockIdx.x / across * std::int64_t{SIDE}", "std::int64_t{0}", "vector"),
    Fault(VECTOR, "static_cast<int>(blockIdx.x % across) * SIDE", "0", "vector"),
    Fault(VECTOR, "i < count ? from[i] : 0", "from[i]", "vector"),
    Fault(VECTOR, "p.partial += turned_numbers(p, cut) / 2;", ";", "vector"),
    # Fragments read from the wrong place.
    Fault(
        TILE,
        "tile + swizzled<CHUNKS>(row + lane % 16, chunk + lane / 16)",
        "tile + swizzled<CHUNKS>(row + lane % 16, chunk)",
        "block_sparse",
    ),
    Fault(TILE, "chunk + lane / 8 % 2", "chunk + lane / 16", "vector"),
    Fault(STACKED, "lane / 4 + i / 2 * 8", "lane / 4 + i % 2 * 8", "linear"),
    Fault(
        TILE,
        "swizzled<CHUNKS>(k + lane % 16, chunk + lane / 16)",
        "swizzled<CHUNKS>(k + lane % 16, chunk)",
        "linear",
    ),
    # Rows that were cut.
    Fault(TILE, "wk < WK", "wk < 1", "few"),
    Fault(STACKED, "row_begin >= first && row_end <= stop", "row_end <= stop", "linear"),
    Fault(
        STACKED,
        "piece(s, blockIdx.x / s.cut.tiles_m, row_begin >= first, tile_m)",
        "piece(s, blockIdx.x / s.cut.tiles_m, 1, tile_m)",
        "linear",
    ),
    Fault(STACKED, "piece(s, part, part == first, tile_m)", "piece(s, part, 1, tile_m)", "linear"),
    Fault(
        STACKED,
        "(block + std::int64_t{1}) * s.cut.parts - 1",
        "(block + std::int64_t{1}) * s.cut.parts",
        "linear",
    ),
    Fault(STACKED, "in_group % height", "in_group % GROUP", "linear"),
    Fault(LAUNCHER, "s_.cut.bm == 64", "s_.cut.bm >= 64", "many rows"),
    Fault(STACKED, "part_begin(s, part + 1)", "part_begin(s, part) + 1", "linear"),
    Fault(STACKED, "first == last", "first >= last", "linear"),
    Fault(STACKED, "tile_m * C::BM + m", "m", "many rows"),
    Fault(STACKED, "tile_m * s.cut.bm + m", "m", "linear"),
    # Which inputs are cut.
    Fault(CUT, "whole * 10 >= at_once * 6", "whole * 10 >= at_once * 5", "cut"),
    Fault(CUT, "fitting * each > whole", "fitting > 1", "cut"),
    Fault(CUT, "at_once / std::max<std::int64_t>(1, each)", "at_once", "cut"),
    Fault(STACKS, "cut.tiles_m * p.rows", "2 * cut.tiles_m * p.rows", "cut"),
    Fault(STACKS, "std::int64_t{p.blocks} * p.bk / SHORTEST", "std::int64_t{p.blocks}", "cut"),
    # How kernels are launched.
    Fault(LAUNCH, "most = shared_bytes", "0", "machine"),
    Fault(LAUNCH, "reserved[{kernel, device}]", "reserved[{kernel, 0}]", "machine"),
    Fault(LAUNCH, "shared_bytes <= most", "most", "machine"),
    # The epilogue.
    Fault(
        EPILOGUE, "erfcf(x * -0.70710678118654752f)", "erfcf(x * 0.70710678118654752f)", "linear"
    ),
    Fault(EPILOGUE, "1.595769121606f", "1.6f", "linear"),
    Fault(EPILOGUE, "sum[i] *= operand[i];", "sum[i] += operand[i];", "linear"),
    Fault(EPILOGUE, "static_cast<const T*>(e.bias) + n", "static_cast<const T*>(e.bias)", "linear"),
    Fault(EPILOGUE, "m >= e.m || count <= 0", "count <= 0", "linear"),
    Fault(
        NUMBER,
        "if (i < count) to[i] = from_float<T>(x[i]);",
        "to[i] = from_float<T>(x[i]);",
        "linear",
    ),
    Fault(EPILOGUE, "min(std::int64_t{8}, e.n - n)", "std::int64_t{8}", "linear"),
    Fault(EPILOGUE, "x < 0 ? 0 : x", "x", "block_sparse"),
    Fault(EPILOGUE, "x / (1 + expf(-x))", "x / (1 + expf(x))", "linear"),
    Fault(NUMBER, "i < count ? to_float(from[i]) : 0.f", "to_float(from[i])", "add_norm"),
    # Attention: order.
    Fault(ATTENTION, BARRIER, ";", "attention", True, behind="ptx::wait_copies<0>();\n    "),
    Fault(ATTENTION, "ptx::wait_copies<0>();", ";", "attention", behind="++step) {\n    "),
    Fault(ATTENTION, BARRIER, ";", "attention", True, True, "ptx::wait_copies<0>();\n  "),
    Fault(ATTENTION, "ptx::sync_warp();", ";", "attention", True),
    Fault(
        ATTENTION,
        "places[(step + 2) % C::LOOK_UPS]",
        "places[(step + 1) % C::LOOK_UPS]",
        "attention",
    ),
    Fault(
        ATTENTION, "stack.look_up(begin + 1, places[(begin + 1) % C::LOOK_UPS]);", ";", "attention"
    ),
    Fault(
        ATTENTION,
        "step % 2 * 2 * C::STAGE",
        "0",
        "attention",
        behind="uint4* tile = stages + ",
    ),
    Fault(
        ATTENTION,
        "load_rows<C>(tile + C::STAGE, v, p.v_stride.row, keys);",
        "load_rows<C>(tile + C::STAGE, k, p.v_stride.row, keys);",
        "attention",
    ),
    Fault(KEY_STACK, "key * stride + chunk * 8", "key * stride", "attention"),
    Fault(ATTENTION, "at * p.q_stride.row", "at * p.q_stride.head", "attention"),
    Fault(ATTENTION, "h / (p.heads / p.kv_heads)", "h", "attention"),
    Fault(
        ATTENTION,
        "((f * 16 + lane / 4 + i * 8) * C::ROW + d) * 4 + lane % 4",
        "((f * 16 + lane / 4) * C::ROW + d) * 4 + lane % 4",
        "attention",
    ),
    # What is seen.
    Fault(KEY_STACK, "last - places.first[i] + 1", "last - places.first[i]", "causal"),
    Fault(KEY_STACK, "places.first[i] + (1 << log_run) - 1 <= last", "true", "causal"),
    Fault(KEY_STACK, "places.mask[i] < 0", "true", "block=128"),
    Fault(KEY_STACK, "places.seen[i] == ~0u", "true", "padded"),
    Fault(KEY_STACK, "begin - w * 32", "begin", "causal"),
    Fault(KEY_STACK, "words_[w] >>= left;", ";", "causal"),
    Fault(KEY_STACK, "pair >> 8 ? 0 : 2", "0", "block=64"),
    Fault(KEY_STACK, "column >> log_run", "0", "block=16"),
    Fault(KEY_STACK, "min(log_block, 6)", "log_block", "block=128"),
    Fault(ATTENTION, "s.cut.heads == 1 ? first + warp * C::OF_WARP : 0", "first + 64", "causal"),
    Fault(ATTENTION, "rows[f][i] + offset", "offset", "causal"),
    Fault(
        ATTENTION,
        "min(p.keys, first + C::QUERIES + offset)",
        "min(p.keys, first + offset)",
        "causal",
    ),
    Fault(KEY_STACK, "key < p.keys && !(key_mask && !key_mask[key])", "key < p.keys", "padded"),
    Fault(ATTENTION, "h * (p.pattern.rows + 1)", "0", "block=16"),
    Fault(KEY_STACK, "row & (p.pattern.block - 1)", "row", "block=64"),
    Fault(KEY_STACK, "(which << 2 * log_block) + inside", "which << 2 * log_block", "block=128"),
    Fault(ATTENTION, "first / p.pattern.block", "blockIdx.x", "block=128"),
    Fault(ATTENTION, "p.kv_of[h]", "0", "mapped"),
    Fault(ATTENTION, "first + row < s.p.queries", "true", "attention"),
    Fault(ATTENTION, "(row[1] - row[0]) * p.pattern.block", "row[1] * p.pattern.block", "block="),
    Fault(ATTENTION, "stack.begin = row[0];", "stack.begin = 0;", "block="),
    Fault(
        KEY_STACK,
        "(p.pattern.indices[block] << log_block) + inside",
        "p.pattern.indices[block] << log_block",
        "block=",
    ),
    Fault(KEY_STACK, "p.key_mask + std::int64_t{sequence} * p.keys", "p.key_mask", "padded"),
    # The running softmax.
    Fault(ATTENTION, "total[f][i] *= shrink;", ";", "attention"),
    Fault(ATTENTION, "out[f][d][i * 2 + 1] *= shrink;", ";", "attention"),
    Fault(ATTENTION, "ptx::shuffle_xor(highest, 2)", "highest", "attention"),
    Fault(ATTENTION, "total[f][i] += ptx::shuffle_xor(total[f][i], 1);", ";", "attention"),
    Fault(
        ATTENTION, "highest == -INFINITY ? 0.f : highest * scale", "highest * scale", "attention"
    ),
    Fault(ATTENTION, "total[f][i] == 0 ? 0.f : 1 / total[f][i]", "1 / total[f][i]", "attention"),
    Fault(ATTENTION, "ptx::shuffle_xor(highest, 1)", "highest", "attention"),
    Fault(
        ATTENTION,
        "ptx::exp2(top[f][i] * scale - base)",
        "ptx::exp2(base - top[f][i] * scale)",
        "attention",
    ),
    Fault(ATTENTION, "top[f][i] = highest;", ";", "attention"),
    Fault(ATTENTION, "total[f][i] += weight;", ";", "attention"),
    # Keys in parts.
    Fault(ATTENTION, "steps * (part + 1) / parts", "steps * part / parts + 1", "parts"),
    Fault(ATTENTION, "tile_of_all * parts + part", "tile_of_all * parts", "parts"),
    Fault(ATTENTION, "step == begin", "step == 0", "parts"),
    Fault(
        ATTENTION,
        "reinterpret_cast<float2*>(row)[C::D / 2] = {top[f][i] * scale, total[f][i]};",
        "reinterpret_cast<float2*>(row)[C::D / 2] = {top[f][i], total[f][i]};",
        "parts",
    ),
    Fault(ATTENTION, "if (top == -INFINITY) continue;", ";", "parts"),
    Fault(ATTENTION, "ptx::exp2(top - highest)", "1", "parts"),
    Fault(ATTENTION, "at % s.cut.queries", "at", "parts"),
    Fault(ATTENTION, "at / s.cut.queries", "0", "parts"),
    Fault(ATTENTION, "h % s.cut.heads * p.queries + at", "at", "parts"),
    Fault(ATTENTION, "h / s.cut.heads", "h", "parts"),
    Fault(ATTENTION, "total == 0 ? 0.f : 1 / total", "1 / total", "parts", behind="inverse = "),
    Fault(ATTENTION, "query >= std::int64_t{p.batch} * p.queries * p.heads", "false", "parts"),
    Fault(ATTENTION, "query / p.heads % p.queries", "query % p.queries", "parts"),
    Fault(ATTENTION, "told[part * piece + 1]", "told[part * piece]", "parts"),
    # Heads that share a tile.
    Fault(ATTENTION, "row / s.p.queries", "row % s.p.queries", "attention"),
    Fault(ATTENTION, "row < s.cut.heads * s.p.queries", "true", "attention"),
    Fault(ATTENTION, "head * p.q_stride.head", "0", "attention"),
    Fault(
        ATTENTION,
        "(std::int64_t{b} * p.queries + at) * p.heads + h + head",
        "(std::int64_t{b} * p.queries + at) * p.heads + h",
        "attention",
    ),
    Fault(
        ATTENTION,
        "row_of(s, first, warp * C::OF_WARP + f * 16 + lane / 4 + i * 8).at",
        "first + lane / 4 + i * 8",
        "causal",
    ),
    *PATTERN_FAULTS,
    # Residual and normalisation.
    Fault(NORM, BARRIER, ";", "add_norm", True),
    Fault(
        NORM,
        "sum_of_block(square, partial + WARPS)",
        "sum_of_block(square, partial)",
        "add_norm",
        True,
    ),
    Fault(NORM, "h[j] += residual[j];", ";", "add_norm"),
    Fault(
        NORM,
        "p.rms ? 0.f : sum_of_block(sum, partial) / p.width",
        "sum_of_block(sum, partial) / p.width",
        "rms",
    ),
    Fault(NORM, "(row[j] - mean) * (row[j] - mean)", "row[j] * row[j]", "layer"),
    Fault(
        NORM,
        "x += ptx::shuffle_xor(x, lanes);",
        "if (lanes > 1) x += ptx::shuffle_xor(x, lanes);",
        "add_norm",
    ),
    Fault(NORM, "blockIdx.x * std::int64_t{p.width}", "std::int64_t{0}", "add_norm"),
    Fault(
        NORM,
        "if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;",
        "if (threadIdx.x == 0) partial[0] = x;",
        "add_norm",
    ),
    Fault(
        NORM,
        "(y[j] - mean) * scale * weight[j] + bias[j]",
        "(y[j] - mean) * scale * weight[j]",
        "layer",
    ),
    Fault(NORM, "min(i + 8, p.width)", "i + 8", "add_norm"),
)
