"""Meeting a time: searched again where the result is off; and what more effort does."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from support.models import answer
from support.tiny_models import tiny_model
from test_compress import SHAPES, Clock, data

from secateurs import Budget, compress
from secateurs.errors import BudgetError
from secateurs.search import search as module
from secateurs.search.meeting import Times, met


@pytest.fixture
def bert():
    return tiny_model("bert").eval()


def test_a_prediction_that_is_short_is_corrected_by_what_was_measured(bert, monkeypatch):
    clock = Clock(monkeypatch, slower=1.3)
    found = compress(bert, data(), "latency=20ms", shapes=SHAPES, progress=False)
    assert clock.measured[0] > 20
    assert found.measured <= 20
    assert len(clock.measured) > 1


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_time_that_is_missed_by_little_is_aimed_at_lower_until_it_is_met(is_whole):
    """Sizes come in steps: a little lower gives the same ones again. The large ones may be the
    whole model, whose table said that it would meet the time."""
    choices = SimpleNamespace(
        of_least_error=lambda limit, weights: ["large"] if limit > 15 else ["small"],
        plan=lambda sizes: sizes,
        is_whole=lambda sizes: is_whole and sizes == ["large"],
    )
    table = SimpleNamespace(stock=60.0, predict=lambda sizes: 19.8)
    tried = []

    def timed(plan):
        tried.append(plan)
        return Times(20.01 if plan == ["large"] else 14.0, 0.1, 60.0)

    sizes, times = met(Budget(latency=20.0), (choices, None), table, timed)
    assert (sizes, times.ms) == (["small"], 14.0)
    assert tried == [["large"], ["small"]]  # nothing is measured twice


def test_a_whole_model_that_met_a_time_once_by_luck_is_pruned(bert, monkeypatch):
    """It takes 30 ms, and was measured at 24 the first time."""
    clock = Clock(monkeypatch, slower=0.8)
    search = module.Search(bert, data(), shapes=SHAPES, progress=False)
    assert not search.meet(Budget(latency=31)).plan.masks
    clock.slower = 1.0
    found = search.meet(Budget(latency=25))
    assert found.plan.masks
    assert found.measured <= 25


def test_what_cannot_be_met_names_the_nearest(bert, monkeypatch):
    Clock(monkeypatch, slower=3.0)
    with pytest.raises(BudgetError, match=r"expected latency=7 to be met, got .* ms"):
        compress(bert, data(), "latency=7", shapes=SHAPES, progress=False)


def test_much_effort_distils_on_more_data_than_it_fits_to(bert, monkeypatch):
    Clock(monkeypatch)
    quick = compress(bert, data(), "speedup=3", shapes=SHAPES, progress=False)
    read, distill = [], module.distill

    def recorded(model, plan, batches, **named):
        read.extend(batches)
        return distill(model, plan, batches, **{**named, "steps": 20})

    monkeypatch.setattr(module, "distill", recorded)
    more = data(7, seed=4)
    named = {"shapes": SHAPES, "effort": "long", "distill_on": more, "progress": False}
    found = compress(bert, data(), "speedup=3", **named)
    assert len(read) == 4 + 7  # two of the six judge
    assert all(any(batch is one for one in read) for batch in more)
    assert found.distance < quick.distance


def test_a_distillation_that_spoils_the_model_is_left_out(bert, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr(module, "EFFORTS", {**module.EFFORTS, "long": module.EFFORTS["quick"]})
    quick = compress(bert, data(), "speedup=3", shapes=SHAPES, progress=False)

    def spoilt(model, *rest, **named):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            spoilt.embeddings.word_embeddings.weight.normal_()
        return spoilt

    monkeypatch.setattr(module, "distill", spoilt)
    found = compress(bert, data(), "speedup=3", shapes=SHAPES, effort="long", progress=False)
    assert found.distance == quick.distance
    assert torch.equal(answer(found.model, data(1)[0]), answer(quick.model, data(1)[0]))
