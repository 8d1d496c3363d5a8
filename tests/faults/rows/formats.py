"""Faults of `formats`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/formats/int8_block_sparse.py",
        ("nn.functional.pad(values, (0, 0, 0, -values.shape[1] % HALF_GROUP))", "values",
         "formats/test_int8_block_sparse.py"),
        ("scales >= torch.finfo(torch.float32).tiny", "scales > 0",
         "formats/test_int8_block_sparse.py -k next_to_nothing"),
        ("keep = BlockSparseWeight.pack(weight, None, block).keep()", "pass",
         "formats/test_int8_block_sparse.py -k small_weights"),
    ),
    *faults_in(
        "python/secateurs/formats/int8_vector.py",
        ("4 * ends[pair] + ", "", "formats/test_int8_vector.py -k comes_back"),
        ("- before[pair]", "", "formats/test_int8_vector.py -k comes_back"),
        ("* -SHIFT", "* SHIFT", "formats/test_int8_vector.py -k side_by_side"),
        ("scales = scales_of(weight, scales)", "scales = scales_of(weight, None)",
         "formats/test_int8_vector.py -k given_scales"),
        ("or bool((4 * words > GROUP).any())", "", "formats/test_int8_vector.py -k validate"),
    ),
)  # fmt: skip
