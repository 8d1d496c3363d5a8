"""What ADMM projects weights onto is the nearest point of the set of patterns."""

from __future__ import annotations

import itertools

import pytest
import torch

from secateurs.pruning.methods.admm_pattern import _free, regional


def energy(weight, keep) -> float:
    return float((weight * keep).double().square().sum())


def test_the_regional_projection_is_the_nearest_point_by_brute_force():
    """One region of 2 x 2 of its blocks (the matrix ends there), one or two of them may stay."""
    random = torch.Generator().manual_seed(0)
    for most in (1, 2):
        weight = torch.randn(4, 8, generator=random)
        pattern = torch.rand(4, 8, generator=random) < 0.5
        got = regional(weight, pattern, (2, 4), most)
        best = 0.0
        for chosen in itertools.combinations(range(4), most):
            mask = torch.zeros(2, 2, dtype=torch.bool)
            mask.view(-1)[list(chosen)] = True
            whole = mask.repeat_interleave(2, 0).repeat_interleave(4, 1)
            best = max(best, energy(weight, pattern & whole))
        assert energy(weight, got) == pytest.approx(best)
        assert not bool((got & ~pattern).any())


def test_every_region_keeps_its_own_blocks():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    keep = regional(weight, torch.ones(32, 64).bool(), (4, 4), 3)
    blocks = keep.view(8, 4, 16, 4).all(3).all(1)
    assert torch.equal(blocks, keep.view(8, 4, 16, 4).any(3).any(1))
    assert set(blocks.view(2, 4, 4, 4).sum((1, 3)).flatten().tolist()) == {3}


def test_free_choice_keeps_the_largest_of_every_block():
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    keep = _free(weight, 5)
    for i, j in itertools.product(range(2), range(3)):
        tile = (slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
        assert int(keep[tile].sum()) == 5
        assert weight[tile].abs()[keep[tile]].min() >= weight[tile].abs()[~keep[tile]].max()
