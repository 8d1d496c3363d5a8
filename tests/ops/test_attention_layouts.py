"""Attention over layouts of blocks, whole, partial and random, against the float64 formula."""

from __future__ import annotations

import pytest
import torch

from ops.attention_check import assert_exact, guarded, qkv
from secateurs.ops import attention
from secateurs.plan.attention_rules import (
    BlockLayout,
    Dense,
    Global,
    Local,
    Sinks,
    Strided,
    VerticalSlash,
    layout,
)

RULES = {
    "local": Local(20),
    "local and global": Local(20) | Global(3),
    "strided": Strided(5),
    "sinks": Sinks(4) | Local(40),
    "slash": VerticalSlash((0, 7, 130), (0, 1, 64)),
}


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("rule", RULES)
def test_patterns(isa, dtype, block, rule):
    pattern = layout(RULES[rule], 150, 170, block=block)
    assert_exact(*map(guarded, qkv(1, 2, 2, 150, 170, 24, dtype)), pattern=pattern)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("tq", "tk"), [(1, 200), (2, 131), (7, 131), (33, 20), (150, 150)])
def test_patterns_by_head_with_everything_else(isa, dtype, block, tq, tk):
    """One rule a head, uneven heads, padding with NaN in it, an explicit mask, causality."""
    rules = [Local(30), Dense(), Sinks(5) | Local(9), Strided(3)]
    q, k, v = qkv(2, 4, 2, tq, tk, 40, dtype)
    padding = torch.rand(2, tk) < 0.8
    padding[1, : tk // 2] = False
    k[~padding[:, None].expand(2, 2, tk)] = torch.nan
    v[~padding[:, None].expand(2, 2, tk)] = torch.nan
    kv_of = torch.tensor([1, 0, 1, 1], dtype=torch.int32)
    for causal in (False, True):
        pattern = layout(rules, tq, tk, block=block, causal=causal)
        kwargs = dict(kv_of=kv_of, key_mask=padding, causal=causal, pattern=pattern)
        assert_exact(q, k, v, **kwargs)
        assert_exact(q, k, v, mask=torch.randn(tq, tk), **kwargs)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("tq", [2, 300])
def test_random_blocks(isa, dtype, block, tq):
    """Any blocks, whole or in part; rows of blocks without any."""
    tk, heads = 300, 3
    rows, columns = -(-tq // block), -(-tk // block)
    kept = torch.rand(heads, rows, columns) < 0.5
    kept[1, 0] = False
    indptr = torch.zeros(heads, rows + 1, dtype=torch.int32)
    counts = kept.sum(2)
    ends = counts.flatten().cumsum(0).view(heads, rows)
    indptr[:, 1:], indptr[:, 0] = ends, ends[:, 0] - counts[:, 0]
    indices = kept.nonzero()[:, 2].to(torch.int32)
    masks = torch.rand(5, block, block) < 0.5
    partial = torch.randint(-1, 5, indices.shape, dtype=torch.int32)
    pattern = BlockLayout(indptr, indices, partial, guarded_masks(masks), (tq, tk))
    assert_exact(*qkv(2, heads, heads, tq, tk, 32, dtype), pattern=pattern)
    assert not attention(*qkv(2, heads, heads, tq, tk, 32, dtype), pattern=pattern)[
        :, : min(block, tq), 1
    ].any()


def guarded_masks(masks):
    memory = torch.ones(masks.numel() + 8192, dtype=torch.bool)
    inside = memory[4096:-4096].view(masks.shape)
    return inside.copy_(masks)


def without_the_middle(block):
    """Three blocks of keys, the middle one in no row; the last row has none."""
    return BlockLayout(
        torch.tensor([[0, 1, 3, 3]], dtype=torch.int32),
        torch.tensor([0, 0, 2], dtype=torch.int32),
        torch.full((3,), -1, dtype=torch.int32),
        torch.zeros(0, block, block, dtype=torch.bool),
        (3 * block, 3 * block),
    )


def test_blocks_outside_a_pattern_are_not_read(isa, dtype):
    """NaN in blocks of keys that no row of blocks stores."""
    q, k, v = qkv(1, 1, 1, 192, 192, 32, dtype)
    k[:, :, 64:128] = v[:, :, 64:128] = torch.nan
    assert_exact(q, k, v, pattern=without_the_middle(64))


def test_a_whole_block_of_16_keys_by_itself(isa, dtype):
    """Nothing but the pattern hides its neighbour, whose keys would take all the weight."""
    q, k, v = qkv(1, 1, 1, 48, 48, 32, dtype)
    k[:, :, 16:32] *= 100
    assert_exact(q, k, v, pattern=without_the_middle(16))
