"""Faults of linears whose zeros are regular within blocks; `faults.py` says what they are for."""

from __future__ import annotations

from seeded_fault import BARRIER, TILE, WAIT, Fault

SPARSE, LIBRARY, PARTS = "sparse_linear.cu", "library_linear.cu", "parts.cuh"

PATTERN_FAULTS = (
    # 2:4.
    Fault(SPARSE, BARRIER, ";", "sparse_linear few", True, behind=f"{WAIT}\n    "),
    Fault(SPARSE, BARRIER, ";", ": bfloat m=1 n=48", True, behind="every copy has landed.\n  "),
    Fault(SPARSE, BARRIER, ";", ": bfloat m=1 n=48", True, behind="sum[nt][mt][i];\n      }\n  "),
    Fault(SPARSE, "told ? told : ANY_PLACES", "told", "sparse_linear"),
    Fault(SPARSE, "lane / 4 * 2 + lane % 2", "lane / 4 * 2", "sparse_linear"),
    Fault(SPARSE, "(std::int64_t{first_n} / 16 + tile)", "std::int64_t{tile}", "sparse_linear"),
    Fault(
        TILE,
        "swizzled<CHUNKS>(row + lane % 8, chunk + lane / 8)",
        "swizzled<CHUNKS>(row, chunk + lane / 8)",
        "sparse_linear",
    ),
    Fault(SPARSE, "w_row + i * W_ROWS < w_rows && w_chunk * 16 < left", "true", "sparse_linear"),
    Fault(SPARSE, "tile * 16 < w_rows && kept_chunk / 4 * 32 < left", "true", "sparse_linear"),
    Fault(
        SPARSE,
        "x_row + i * X_ROWS < x_rows && x_chunk * 8 < left",
        "x_row + i * X_ROWS < x_rows",
        "sparse_linear",
    ),
    Fault(SPARSE, "k / 2 + kept_chunk * 4", "k / 2", "sparse_linear"),
    Fault(SPARSE, "tile * (C::STEP / 32) + k", "k", "sparse_linear"),
    Fault(SPARSE, "tile_of_all % s.cut.tiles_m * C::BM", "0", "sparse_linear"),
    Fault(
        SPARSE,
        "(wn * C::NT + nt) * 16 + lane / 4 + i / 2 * 8",
        "(wn * C::NT + nt) * 16 + lane / 4 + i % 2 * 8",
        "sparse_linear",
    ),
    Fault(SPARSE, "x + i * x_on", "x", "sparse_linear"),
    Fault(SPARSE, "w + i * w_on", "w", "sparse_linear"),
    Fault(SPARSE, "x += C::STEP;", ";", "sparse_linear"),
    Fault(SPARSE, "w += C::STEP / 2;", ";", "sparse_linear"),
    Fault(SPARSE, "kept += C::STEP / 2;", ";", "sparse_linear"),
    Fault(SPARSE, "left -= C::STEP;", ";", "sparse_linear"),
    Fault(SPARSE, "stage ? stage - 1 : C::STAGES - 1", "stage", "sparse_linear"),
    Fault(SPARSE, "stage + 1 < C::STAGES ? stage + 1 : 0", "stage", "sparse_linear"),
    # 2:4 in parts of the inputs.
    Fault(SPARSE, "p.k / SHORTEST", "p.k", "cut"),
    Fault(SPARSE, "p.k - step * C::STEP", "p.k", "sparse_linear"),
    Fault(SPARSE, "all * (part + 1) / parts", "all * part / parts + 1", "sparse_linear"),
    Fault(PARTS, "blockIdx.x * std::int64_t{BM} + m", "m", "sparse_linear"),
    Fault(PARTS, "std::int64_t{part} * bm + m", "m", "sparse_linear"),
    Fault(PARTS, "part < p.cut.parts", "part < p.cut.parts - 1", "sparse_linear"),
    Fault(PARTS, "blockIdx.x % p.cut.tiles_m * bm", "0", "sparse_linear"),
    Fault(PARTS, "blockIdx.x / p.cut.tiles_m * p.bn", "0", "library_linear"),
    Fault(SPARSE, "bm == 64", "bm >= 64", "sparse_linear many rows"),
    # Libraries of block patterns.
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="last step's tiles any more.\n    "),
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="= {0, 0, 0, 0};\n    "),
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="places, x, step);\n    "),
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="every copy has landed.\n  "),
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="= sum[n][i];\n  "),
    Fault(LIBRARY, BARRIER, ";", "library", True, behind="counts[threadIdx.x] = count;\n  "),
    Fault(LIBRARY, "ptx::wait_copies<0>();", ";", "library"),
    Fault(LIBRARY, "(step + 1) % 2 * stage", "0", "library"),
    Fault(LIBRARY, "w[threadIdx.x + i * THREADS] = {0, 0, 0, 0};", ";", "library"),
    Fault(LIBRARY, "entry - block * ones", "0", "library"),
    Fault(LIBRARY, "entry * s.inverse_ones >> LOG_DIVISOR", "0", "library"),
    Fault(LIBRARY, "place(i >> s.log_q, i & (s.p.q - 1))", "place(0, i)", "library"),
    Fault(LIBRARY, "n % 8 * 8", "0", "library"),
    Fault(LIBRARY, "place(0, block << s.log_q)", "0", "library"),
    Fault(LIBRARY, "block_place += place(0, s.p.q);", ";", "library"),
    Fault(LIBRARY, "place(at.row << s.log_p, 0)", "0", "library"),
    Fault(LIBRARY, "*++code * ones", "*code * ones", "library"),
    Fault(LIBRARY, "entry += counts[pattern * SHARES + i];", ";", "library"),
    Fault(LIBRARY, "column >= width", "false", "library"),
    Fault(
        LIBRARY,
        "min(STEP >> s.log_q, s.across - first_block(step))",
        "(STEP >> s.log_q)",
        "library",
    ),
    Fault(LIBRARY, "step * STEP + chunk * 8 < s.p.k", "true", "library"),
    Fault(LIBRARY, "row + i * ROWS_ON < s.p.epilogue.m", "true", "library"),
    Fault(LIBRARY, "(std::int64_t{first_n} >> s.log_p) * s.across", "std::int64_t{0}", "library"),
    Fault(
        LIBRARY, "min(std::int64_t{BN}, s.p.epilogue.n - first_n)", "std::int64_t{BN}", "library"
    ),
    # Their codes, which begin anywhere.
    Fault(LIBRARY, "(before + at.row * s.across + first) / 16 * 16", "before / 16 * 16", "library"),
    Fault(LIBRARY, "min(std::int64_t{16}, all - begin)", "std::int64_t{16}", "library"),
    Fault(LIBRARY, "(before + at.row * s.across + first) % 16", "first % 16", "library"),
    Fault(LIBRARY, "(STEP / p.q + 14) / 16 + 1", "(STEP / p.q + 15) / 16", "library"),
    # And in parts of the inputs.
    Fault(LIBRARY, "all * (part + 1) / parts", "all * part / parts + 1", "library"),
    Fault(LIBRARY, "blockIdx.x / parts * BN", "blockIdx.x * BN", "library"),
    Fault(LIBRARY, "p.k / SHORTEST", "p.k", "cut"),
)
