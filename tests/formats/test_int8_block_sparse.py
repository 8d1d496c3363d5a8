from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateurs.errors import FormatError
from secateurs.formats import Int8Weight


def weight(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n * k))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (31, 5), (64, 64), (100, 70)])
def test_a_dense_weight_of_any_size_packs_in_panels(n, k):
    dense = weight(n, k)
    packed = Int8Weight.pack_dense(dense).validate()
    assert packed.block == (32, -(-k // 32) * 32)
    assert packed.shape == (n, k)
    error = (packed.to_dense() - dense).abs()
    assert bool((error <= dense.abs().amax(1, keepdim=True) / 254 * 1.00001).all())


@pytest.mark.parametrize("block", [(16, 32), (32, 32), (64, 64), (32, 128)])
def test_pack_keeps_exactly_the_blocks_asked_for(block):
    (bn, bk), dense = block, weight(128, 256)
    keep = torch.rand(128 // bn, 256 // bk) < 0.4
    keep[1] = False
    packed = Int8Weight.pack(dense, keep, block).validate()
    mask = keep.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    assert torch.equal(packed.keep(), keep)
    assert torch.equal(packed.to_dense() != 0, (packed.to_dense() != 0) & mask)
    assert torch.equal(packed.to_dense(), Int8Weight.pack_dense(dense).to_dense() * mask)
    assert packed.density == pytest.approx(float(keep.float().mean()))


def test_four_inputs_of_an_output_lie_side_by_side_with_128_added():
    dense = torch.zeros(32, 64)
    dense[5, 36:40] = torch.tensor([1.0, -2.0, 127.0, -127.0])
    packed = Int8Weight.pack_dense(dense, torch.ones(32))
    assert packed.values[0, 9, 5].tolist() == [129, 126, 255, 1]
    assert packed.values[0, 8, 5].tolist() == [128] * 4


def test_a_block_of_small_weights_is_no_removed_block():
    dense = weight(32, 64)
    dense[:, 32:] = 1e-6
    packed = Int8Weight.pack(dense)
    assert packed.keep().tolist() == [[True, True]]
    assert bool((packed.to_dense()[:, 32:] == 0).all())


def test_the_largest_entry_of_an_output_has_the_largest_code():
    dense = weight(64, 768)
    packed = Int8Weight.pack_dense(dense)
    largest = packed.codes().to_dense().abs().amax(1)
    assert largest.tolist() == [127] * 64
    torch.testing.assert_close(packed.scales, dense.abs().amax(1) / 127)


def test_rows_of_zeros_and_of_next_to_nothing_become_zeros():
    dense = weight(4, 64)
    dense[1], dense[2] = 0, 1e-40
    packed = Int8Weight.pack_dense(dense).validate()
    assert packed.scales[1:3].tolist() == [1, 1]
    assert bool((packed.to_dense()[1:3] == 0).all())
    assert bool((packed.to_dense()[[0, 3]] != 0).any(1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_scales_give_the_codes_again(dtype):
    first = Int8Weight.pack_dense(weight(40, 100))
    again = Int8Weight.pack_dense(first.to_dense().to(dtype), first.scales)
    assert torch.equal(again.values, first.values)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused(bad):
    dense = weight(32, 32)
    dense[3, 4] = bad
    with pytest.raises(FormatError, match="expected finite weights, got NaN or infinity"):
        Int8Weight.pack_dense(dense)
    with pytest.raises(FormatError, match="expected finite weights, got NaN or infinity"):
        Int8Weight.pack(dense)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((32, 16), "int8 blocks have 32 inputs or a multiple of 64, got 16"),
        ((32, 96), "int8 blocks have 32 inputs or a multiple of 64, got 96"),
        ((48, 32), "does not divide a weight"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block, message):
    with pytest.raises(FormatError, match=message):
        Int8Weight.pack(weight(64, 96), block=block)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (torch.ones(31), r"float32 of shape \(32,\), got torch.float32 \(31,\)"),
        (torch.ones(32).double(), "got torch.float64"),
        (torch.zeros(32), "finite and above 0"),
        (torch.full((32,), torch.inf), "finite and above 0"),
        (torch.full((32,), torch.nan), "finite and above 0"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales, message):
    with pytest.raises(FormatError, match=message):
        Int8Weight.pack_dense(weight(32, 32), scales)
    with pytest.raises(FormatError, match=message):
        replace(Int8Weight.pack_dense(weight(32, 32)), scales=scales).validate()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(2, 8, 32, 4, dtype=torch.uint8)}, "codes must lie in -127..127"),
        ({"values": torch.ones(2, 8, 32, 4)}, "contiguous uint8"),
        ({"values": torch.ones(2, 4, 32, 4, dtype=torch.uint8)}, "int8 blocks have 32 inputs"),
        ({"indices": torch.tensor([1, 0], dtype=torch.int32)}, "must rise"),
        ({"indices": torch.tensor([0, 2], dtype=torch.int32)}, r"must lie in 0..1"),
        ({"indptr": torch.tensor([0, 1], dtype=torch.int32)}, "must rise from 0 to the 2"),
    ],
)
def test_validate_refuses(change, message):
    with pytest.raises(FormatError, match=message):
        replace(Int8Weight.pack(weight(32, 64)), **change).validate()
