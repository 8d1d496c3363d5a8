from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateurs import BlockSparseWeight
from secateurs.errors import FormatError


def weight(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n * k))


@pytest.mark.parametrize("block", [(16, 16), (32, 32), (32, 1), (64, 32)])
def test_pack_keeps_exactly_the_blocks_asked_for(block):
    (bn, bk), dense = block, weight(128, 64)
    keep = torch.rand(128 // bn, 64 // bk) < 0.4
    keep[1] = False
    packed = BlockSparseWeight.pack(dense, keep, block).validate()
    mask = keep.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    assert torch.equal(packed.to_dense(), dense * mask)
    assert torch.equal(packed.keep(), keep)
    assert packed.values.shape == (int(keep.sum()), bk, bn)
    assert packed.density == pytest.approx(float(keep.float().mean()))


def test_blocks_are_stored_input_major():
    dense = weight(64, 32)
    packed = BlockSparseWeight.pack(dense, torch.tensor([[True], [True]]), (32, 32))
    assert packed.values[1, 5, 7] == dense[32 + 7, 5]


@pytest.mark.parametrize(("n", "k", "block"), [(64, 96, (32, 32)), (70, 33, None), (32, 64, None)])
def test_pairs_of_inputs_hold_the_same_weight(n, k, block):
    dense = weight(n, k)
    keep = None if block is None else torch.eye(2, 3) > 0
    packed = (
        BlockSparseWeight.pack(dense, keep, block) if block else BlockSparseWeight.pack_dense(dense)
    )
    paired = packed.paired().validate()
    assert paired.in_pairs
    assert paired.paired() is paired
    assert torch.equal(paired.to_dense(), packed.to_dense())
    assert torch.equal(paired.keep(), packed.keep())
    assert paired.density == packed.density
    assert torch.equal(paired.values[0, 2, 5], packed.values[0, 4:6, 5])
    assert paired.block == (block or (32, -(-k // 32) * 32))


def test_weights_come_in_pairs_where_kernels_read_pairs():
    low = weight(32, 6).bfloat16()
    assert not BlockSparseWeight.pack_dense(weight(32, 6)).as_read().in_pairs
    assert BlockSparseWeight.pack_dense(low).as_read().in_pairs
    assert BlockSparseWeight.pack(low, block=(32, 2)).as_read().in_pairs
    assert not BlockSparseWeight.pack(low, block=(32, 3)).as_read().in_pairs


def test_blocks_of_an_odd_number_of_inputs_have_no_pairs():
    with pytest.raises(FormatError, match="32 outputs by 3 inputs have an input without a pair"):
        BlockSparseWeight.pack(weight(32, 6), block=(32, 3)).paired()


def test_pack_without_a_mask_drops_zero_blocks():
    dense = weight(64, 64)
    dense[:32, 32:] = 0
    packed = BlockSparseWeight.pack(dense, block=(32, 32))
    assert packed.indptr.tolist() == [0, 1, 3]
    assert packed.indices.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (31, 5), (32, 7), (100, 3)])
def test_a_dense_weight_of_any_size_packs_in_panels(n, k):
    packed = BlockSparseWeight.pack_dense(weight(n, k)).validate()
    assert packed.block == (32, k)
    assert torch.equal(packed.to_dense(), weight(n, k))
    assert packed.density == 1


def test_all_blocks_may_be_gone():
    packed = BlockSparseWeight.pack(weight(32, 32), torch.zeros(2, 2).bool(), (16, 16)).validate()
    assert not packed.to_dense().any()


def test_pack_refuses_blocks_that_do_not_divide_and_masks_that_do_not_fit():
    with pytest.raises(FormatError, match="does not divide"):
        BlockSparseWeight.pack(weight(33, 32))
    with pytest.raises(FormatError, match="keep must have shape"):
        BlockSparseWeight.pack(weight(32, 32), torch.ones(2, 2).bool(), (32, 32))


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indptr": index(0, 2, 3)}, "rise from 0"),
        ({"indptr": index(1, 2, 4)}, "rise from 0"),
        ({"indptr": index(0, 5, 4)}, "rise from 0"),
        ({"indptr": torch.tensor([0, 2, 4])}, "int32"),
        ({"indices": index(0, 1, 0, 2)}, "must lie in"),
        ({"indices": index(0, 1, 0, -1)}, "must lie in"),
        ({"indices": index(1, 0, 0, 1)}, "rise within"),
        ({"indices": index(0, 0, 0, 1)}, "rise within"),
        ({"indices": index(0, 1, 0)}, "must name"),
        ({"values": torch.zeros(4, 32, 32).transpose(1, 2)}, "contiguous"),
        ({"shape": (96, 64)}, "do not cover"),
        ({"shape": (64, 80)}, "do not cover"),
        ({"values": torch.zeros(4, 80, 32), "indices": index(0, 0, 0, 0)}, "do not cover"),
    ],
)
def test_validate_finds_every_index_a_kernel_would_trust(change, words):
    packed = BlockSparseWeight.pack(weight(64, 64)).validate()
    with pytest.raises(FormatError, match=words):
        replace(packed, **change).validate()
