"""Ranking against a stable sort, and schedules against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secateurs.errors import MethodError
from secateurs.pruning.ranking import lowest
from secateurs.pruning.schedules import Schedule


def oracle(scores, count):
    """The first `count` positions of a stable sort."""
    joined = np.concatenate([s.double().numpy().ravel() for s in scores])
    gone = np.zeros(joined.size, dtype=bool)
    gone[np.argsort(joined, kind="stable")[:count]] = True
    return gone.tolist()


def joined(masks):
    return torch.cat([mask.flatten() for mask in masks]).tolist()


@pytest.mark.parametrize("histogram_from", [10**9, 0])
@pytest.mark.parametrize("seed", range(6))
def test_exactly_the_lowest_go_under_ties(seed, histogram_from):
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(-2, 3, (37,), generator=random).float()  # five values: ties everywhere
    second = torch.randn(5, 8, generator=random).round(decimals=1).T
    second[0, :3] = torch.tensor([float("inf"), -float("inf"), -0.0])
    for count in (0, 1, 11, 38, 76, 77):
        got = lowest([first, second], count, histogram_from=histogram_from)
        assert [m.shape for m in got] == [first.shape, second.shape]
        assert joined(got) == oracle([first, second], count)


def test_histograms_tell_neighbouring_floats_apart():
    start = torch.tensor([1.0, -3e-38, 7e30, 65504.0])
    scores = torch.cat([start, start.nextafter(torch.tensor(torch.inf)), -start])
    for count in range(13):
        assert joined(lowest([scores], count, histogram_from=0)) == oracle([scores], count)


def test_histograms_of_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr("secateurs.pruning.ranking._CHUNK", 7)
    scores = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert joined(lowest([scores], 43, histogram_from=0)) == oracle([scores], 43)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(MethodError, match="between 0 and 3 scores, got 4"):
        lowest([torch.ones(3)], 4)
    with pytest.raises(MethodError, match="NaN"):
        lowest([torch.tensor([1.0, float("nan")])], 1)


def test_schedules_follow_their_formulas():
    cubic = Schedule(1.0, 0.3, 100, 600)
    assert [cubic(t) for t in (0, 100, 600, 900)] == [1.0, 1.0, 0.3, 0.3]
    assert cubic(350) == pytest.approx(0.3 + 0.7 * 0.5**3)
    assert Schedule(0.0, 0.9, 0, 10, "linear")(3) == pytest.approx(0.27)
    falling = Schedule(1000.0, 1e-8, 0, 400, "geometric")
    for step in (1, 100, 399):
        want = math.exp(math.log(1e3) - step / 400 * (math.log(1e3) - math.log(1e-8)))
        assert falling(step) == pytest.approx(want)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 1, 5, 5), "to a later one, got 5 to 5"),
        ((0, 1, -1, 5), "at least 0"),
        ((0, 1, 0, 5, "wavy"), "expected a schedule in linear, cubic, geometric"),
        ((1, 0, 0, 5, "geometric"), "positive ends"),
    ],
)
def test_bad_schedules_are_refused(arguments, words):
    with pytest.raises(MethodError, match=words):
        Schedule(*arguments)


def test_a_schedule_longer_than_training_is_refused():
    assert Schedule(0, 1, 0, 5).within(5)(5) == 1
    with pytest.raises(MethodError, match="the training's 4 steps, got one that ends at step 5"):
        Schedule(0, 1, 0, 5).within(4)
