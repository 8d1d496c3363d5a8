"""Int8 vectors: what is packed comes back, and nothing unchecked reaches a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import oracles

from secateurs.errors import FormatError
from secateurs.formats import Int8VectorWeight, Int8Weight
from secateurs.formats.int8_block_sparse import row_scales


def weight(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def keep(n: int, k: int, v: int, share: float = 0.5) -> torch.Tensor:
    chosen = torch.rand(n // v, k, generator=torch.Generator().manual_seed(1)) < share
    return chosen.repeat_interleave(v, 0)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(("n", "k", "v"), [(32, 64, 16), (96, 100, 32), (6, 1, 2), (64, 193, 64)])
def test_what_is_kept_comes_back_on_codes_and_nothing_else(n, k, v, share):
    w, kept = weight(n, k), keep(n, k, v, share)
    packed = Int8VectorWeight.pack(w, kept, v).validate()
    assert torch.equal(packed.to_dense(), Int8Weight.pack_dense(w).to_dense() * kept)
    assert torch.equal(torch.from_numpy(oracles.dense_codes(packed)) != 0, packed.to_dense() != 0)


def test_four_inputs_lie_side_by_side_group_after_group():
    """Outputs 0 and 1 keep five inputs of the first 64 and one of the others, 2 and 3 none and
    one."""
    w = torch.arange(1.0, 4 * 70 + 1).view(4, 70) / 280 * 127
    kept = torch.zeros(4, 70).bool()
    kept[:2, [3, 5, 8, 13, 63, 66]] = True
    kept[2:, 69] = True
    packed = Int8VectorWeight.pack(w, kept, 2, torch.ones(4)).validate()
    assert packed.places.tolist() == [[3, 5, 8, 13], [63, 0, 0, 0], [2, 0, 0, 0], [5, 0, 0, 0]]
    assert packed.indptr.tolist() == [0, 2, 3, 3, 4]
    assert packed.values[1, :, 1:].eq(0).all()
    assert packed.values[0, 1].tolist() == w[1, [3, 5, 8, 13]].round().tolist()
    sums = [w[row, kept[row]].round().sum().item() for row in range(4)]
    assert packed.starts.view(2, 2, 2).sum(1).flatten().tolist() == [-128 * s for s in sums]


def test_given_scales_give_the_codes_again():
    w, kept = weight(32, 96), keep(32, 96, 16)
    once = Int8VectorWeight.pack(w, kept, 16)
    again = Int8VectorWeight.pack(once.to_dense().bfloat16(), kept, 16, row_scales(w))
    assert torch.equal(again.values, once.values)


@pytest.mark.parametrize(
    ("vector", "kept", "message"),
    [
        (24, keep(32, 64, 16), "do not fit groups of 24 outputs"),
        (0, keep(32, 64, 16), "do not fit groups of 0 outputs"),
        (16, keep(32, 96, 16), r"keep \(32, 96\) do not fit"),
        (32, keep(32, 64, 16), "the same for each 32 neighbouring outputs"),
    ],
)
def test_choices_that_differ_within_a_group_are_refused(vector, kept, message):
    with pytest.raises(FormatError, match=message):
        Int8VectorWeight.pack(weight(32, 64), kept, vector)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(bad):
    w = weight(32, 64)
    w[3, 5] = bad
    with pytest.raises(FormatError, match="finite weights"):
        Int8VectorWeight.pack(w, keep(32, 64, 16), 16)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.full((32, 16, 4), -128, dtype=torch.int8)}, "codes must lie in -127..12"),
        ({"values": torch.ones(32, 16, 4)}, "contiguous int8"),
        ({"values": torch.ones(32, 0, 4, dtype=torch.int8)}, "for 32 outputs"),
        ({"values": torch.ones(32, 24, 4, dtype=torch.int8)}, "for 32 outputs"),
        (
            {"places": torch.full((32, 4), 64, dtype=torch.uint8)},
            "places must lie in 0..63, got 64",
        ),
        ({"places": torch.zeros(31, 4, dtype=torch.uint8)}, "places must be contiguous"),
        ({"indptr": int32(0, 8, 16, 24)}, "indptr must be contiguous"),
        ({"indptr": int32(0, 8, 16, 24, 33)}, "from 0 to 32"),
        ({"indptr": int32(0, 8, 25, 24, 32)}, "must rise from 0"),
        ({"indptr": int32(0, 17, 17, 24, 32)}, "at most 16 words"),
        ({"starts": torch.zeros(4, 16, dtype=torch.int32)}, "-128 times the sums"),
        ({"starts": torch.zeros(4, 8, dtype=torch.int32)}, "starts must be contiguous"),
        ({"scales": torch.zeros(32)}, "finite and above 0"),
    ],
)
def test_validate_refuses(change, message):
    halves = torch.tensor([True, False]).repeat(32, 64)
    packed = Int8VectorWeight.pack(weight(32, 128), halves, 16).validate()
    with pytest.raises(FormatError, match=message):
        replace(packed, **change).validate()
