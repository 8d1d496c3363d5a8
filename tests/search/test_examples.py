from __future__ import annotations

import pytest
import torch

from secateurs.search.examples import some, split


def sorted_batches(count: int, size: int = 16) -> list[dict[str, torch.Tensor]]:
    """Batches of ever longer examples."""
    return [{"input_ids": torch.full((size, length), length)} for length in range(1, count + 1)]


def lengths(batches) -> list[int]:
    return [batch["input_ids"].shape[1] for batch in batches]


@pytest.mark.parametrize("count", [2, 3, 5, 8, 32, 100])
def test_sorted_examples_judge_and_are_fitted_to_alike(count):
    data = sorted_batches(count)
    judged, fitted = split(data)
    assert sorted(lengths(judged) + lengths(fitted)) == lengths(data)
    assert judged
    assert fitted
    assert sum(len(batch["input_ids"]) for batch in judged) <= max(16, 64)
    if len(judged) > 1:  # as long on average, and from both halves
        mean = sum(lengths(judged)) / len(judged)
        assert mean == pytest.approx((count + 1) / 2, abs=0.5)
        assert lengths(judged)[0] < count / 2 < lengths(judged)[-1]


def test_one_batch_does_both():
    data = sorted_batches(1)
    assert split(data) == (data, data)


@pytest.mark.parametrize(("examples", "count"), [(1, 1), (16, 1), (17, 2), (128, 8), (10**6, 32)])
def test_some_examples_are_of_every_length(examples, count):
    found = lengths(some(sorted_batches(32), examples))
    assert len(found) == count
    assert len(set(found)) == count
    assert sum(found) / count == pytest.approx(16.5, rel=0.1)


def test_batches_of_other_sizes():
    data = [*sorted_batches(3, size=2), *sorted_batches(1, size=60)]
    judged, fitted = split(data)
    assert len(judged) == 1
    assert len(fitted) == 3
