"""Rules on positions, and their block layouts, against one position at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from secateurs import ops
from secateurs.errors import OperandError, PatternError
from secateurs.plan.attention_rules import (
    Dense,
    Global,
    Local,
    Rule,
    Sinks,
    Strided,
    VerticalSlash,
    layout,
)

RULES = {
    "dense": (Dense(), lambda q, k: True),
    "local": (Local(20), lambda q, k: abs(q - k) <= 20),
    "local 0": (Local(0), lambda q, k: q == k),
    "strided": (Strided(7), lambda q, k: (q - k) % 7 == 0),
    "global": (Global(5), lambda q, k: q < 5 or k < 5),
    "sinks": (Sinks(40), lambda q, k: k < 40),
    "none": (Sinks(0), lambda q, k: False),
    "vertical slash": (
        VerticalSlash((3, 50), (0, 30)),
        lambda q, k: k in (3, 50) or q - k in (0, 30),
    ),
    "union": (Local(3) | Sinks(2) | Strided(16), lambda q, k: (
        abs(q - k) <= 3 or k < 2 or (q - k) % 16 == 0)),
}  # fmt: skip


@pytest.fixture(params=[name.replace(" ", "-") for name in RULES])
def case(request):
    return RULES[request.param.replace("-", " ")]


def oracle(says, tq, tk, offset, causal):
    return torch.tensor(
        [[says(i + offset, j) and (not causal or j <= i + offset) for j in range(tk)]
         for i in range(tq)]
    )  # fmt: skip


def expand(blocks, head=0):
    """A layout as a mask, block by block."""
    (tq, tk), size = blocks.shape, blocks.block
    rows = blocks.indptr.shape[1] - 1
    mask = torch.zeros(rows * size, -(-tk // size) * size, dtype=torch.bool)
    for r in range(rows):
        at = range(int(blocks.indptr[head, r]), int(blocks.indptr[head, r + 1]))
        columns = [int(blocks.indices[i]) for i in at]
        assert columns == sorted(set(columns))
        for i, c in zip(at, columns, strict=True):
            which = int(blocks.partial[i])
            tile = True if which < 0 else blocks.masks[which]
            mask[r * size : (r + 1) * size, c * size : (c + 1) * size] = tile
    return mask[:tq, :tk]


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tq", "tk", "offset"), [(70, 100, None), (64, 64, 0), (1, 90, None)])
def test_layouts(case, block, causal, tq, tk, offset):
    rule, says = case
    blocks = layout(rule, tq, tk, offset=offset, block=block, causal=causal)
    want = oracle(says, tq, tk, tk - tq if offset is None else offset, causal)
    assert torch.equal(expand(blocks), want)
    # No block is visited in vain, and a mask is stored only where a block is cut.
    for r in range(blocks.indptr.shape[1] - 1):
        for i in range(int(blocks.indptr[0, r]), int(blocks.indptr[0, r + 1])):
            c = int(blocks.indices[i])
            tile = want[r * block : (r + 1) * block, c * block : (c + 1) * block]
            assert tile.any()
            assert (int(blocks.partial[i]) < 0) == bool(tile.all())


def test_each_head_has_its_own_blocks_or_all_share_them():
    rules = [Local(5), Dense(), Local(5)]
    blocks = layout(rules, 40, 40, block=16)
    assert blocks.indptr.shape == (3, 4)
    assert torch.equal(expand(blocks, 0), expand(blocks, 2))
    assert expand(blocks, 1).all()
    shared = layout([Local(5)] * 3, 40, 40, block=16)
    assert shared.indptr.shape == (1, 4)
    assert torch.equal(expand(shared), expand(blocks))
    assert 0 < shared.density < 1 == layout(Dense(), 40, 40, block=16).density


def test_masks_are_shared_along_the_diagonal():
    assert len(layout(Local(10), 1024, 1024, block=16).masks) == 3


def test_layouts_are_cached():
    assert layout(Local(3), 50, 50) is layout([Local(3)] * 2, 50, 50)
    assert layout(Local(3), 50, 50) is not layout(Local(4), 50, 50)


def test_the_reference_obeys_a_pattern():
    q, k, v = torch.randn(3, 2, 4, 50, 16)
    rules = [Local(5), Strided(3), Dense(), Sinks(4)]
    blocks = layout(rules, 50, 50, block=16)
    mask = torch.stack([expand(blocks, h) for h in range(4)])
    with ops.use_backend("reference"):
        want = ops.attention(q, k, v, mask=mask, causal=True)
        assert torch.allclose(ops.attention(q, k, v, causal=True, pattern=blocks), want)
        plain = ops.attention(q, k, v, causal=True)
    assert not torch.allclose(plain, want)


def test_gradients_flow_through_a_pattern():
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 1, 2, 20, 4, dtype=torch.float64))
    blocks = layout([Local(2), Sinks(3)], 20, 20, block=16)
    assert torch.autograd.gradcheck(lambda *a: ops.attention(*a, pattern=blocks), (q, k, v))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Local(-1), "window to be an integer from 0, got -1"),
        (lambda: Strided(0), "stride to be an integer from 1, got 0"),
        (lambda: Global(1.5), "n to be an integer from 0, got 1.5"),
        (lambda: VerticalSlash((-3,)), "vertical to be an integer from 0, got -3"),
        (lambda: layout([], 4, 4), "expected a rule"),
        (lambda: layout("dense", 4, 4), "expected a rule"),
        (lambda: layout(Dense(), -1, 4), "lengths from 0"),
        (lambda: layout(Dense(), 4, 4, block=48), "block among"),
    ],
)
def test_bad_patterns(make, reason):
    with pytest.raises(PatternError, match=reason):
        make()


def test_a_pattern_that_does_not_fit_the_call():
    q = torch.randn(1, 2, 50, 16)
    with pytest.raises(OperandError, match=r"over \(50, 50\) queries and keys, got .*\(60, 50\)"):
        ops.attention(q, q, q, pattern=layout(Dense(), 60, 50))
    with pytest.raises(OperandError, match="2 heads"):
        ops.attention(q, q, q, pattern=layout([Dense(), Local(1), Sinks(1)], 50, 50))


def numbers(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indptr": numbers(0, 2, 3)}, r"expected indptr \[heads, 3\] for 20 queries"),
        ({"indptr": torch.zeros(0, 3, dtype=torch.int32)}, "expected indptr"),
        ({"indptr": numbers(0, 2)[None]}, "expected indptr"),
        ({"indptr": numbers(1, 2, 3)[None]}, "rise from 0 to the 3 blocks"),
        ({"indptr": numbers(0, 4, 3)[None]}, "rise from 0 to the 3 blocks"),
        ({"indptr": numbers(0, 2, 4)[None]}, "rise from 0 to the 3 blocks"),
        ({"indices": numbers(0, 0, 2)}, r"lie in 0\.\.1"),
        ({"indices": numbers(0, -1, 1)}, r"lie in 0\.\.1"),
        ({"partial": numbers(0, 9, 0)}, "one of 2 masks, or -1"),
        ({"partial": numbers(0, -2, 0)}, "one of 2 masks, or -1"),
        ({"partial": numbers(0, 0)}, "one of 2 masks, or -1"),
    ],
)
def test_validate_finds_every_index_a_kernel_would_trust(change, words):
    blocks = layout(Local(3), 20, 20, block=16, causal=True).validate()
    assert blocks.indices.tolist() == [0, 0, 1]
    assert len(blocks.masks) == 3
    blocks = replace(blocks, masks=blocks.masks[:2], partial=numbers(0, 1, 0))
    with pytest.raises(PatternError, match=words):
        replace(blocks, **change).validate()


def test_rules_are_values():
    assert Local(3) | Sinks(1) == Local(3) | Sinks(1)
    assert hash(VerticalSlash((2, 1))) == hash(VerticalSlash((1, 2)))
    with pytest.raises(NotImplementedError):
        Rule().allows(torch.zeros(1), torch.zeros(1))
