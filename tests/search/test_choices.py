"""Sizes, their errors, and the plan that a choice means."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.made_up_times import made_up_table
from support.tiny_models import tiny_model

from secateurs import find_sites
from secateurs.errors import BudgetError
from secateurs.search.choices import Choices
from secateurs.search.sizes import Size, heads_kept, neurons_kept, plan_of

SITES = find_sites(tiny_model("bert"))  # 3 layers of 4 heads and 96 neurons


def scores(seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.{kind}": torch.rand(units, generator=random).double()
        for i in range(3)
        for kind, units in (("heads", 4), ("neurons", 96))
    }


def table():
    return made_up_table(SITES.layers[0])


def test_sizes_are_multiples_and_hold_nothing_and_all():
    bert = SITES.layers[0]
    assert heads_kept(bert) == [0, 1, 2, 3, 4]
    assert neurons_kept(bert) == [0, 32, 64, 96]
    odd = find_sites(tiny_model("bert", intermediate_size=80)).layers[0]
    assert neurons_kept(odd) == [0, 32, 64, 80]


def test_the_plan_keeps_what_scores_highest():
    marks = scores()
    plan = plan_of(SITES, marks, [Size(2, 96), Size(4, 32), Size(0, 0)])
    kept = [SITES.keep(plan, i) for i in range(3)]
    assert kept[0].heads.tolist() == (marks["layers.0.heads"].argsort().argsort() >= 2).tolist()
    assert kept[0].neurons.all()
    assert kept[1].heads.all()
    assert int(kept[1].neurons.sum()) == 32
    least = marks["layers.1.neurons"][kept[1].neurons].min()
    assert least > marks["layers.1.neurons"][~kept[1].neurons].max()
    assert not kept[2].attention
    assert not kept[2].ffn


def test_a_table_adds_differences_up_and_knows_layers_that_are_gone():
    assert table().predict([Size(4, 96)] * 3) == 30
    assert table().predict([Size(2, 64), Size(4, 0), Size(0, 0)]) == 30 - 3 - 3 - 8


@pytest.mark.parametrize("losses", ["cumulative", "additive", "unknown", "even"])
@pytest.mark.parametrize("limit", [10.0, 16.5, 24.0])
def test_the_choice_has_the_least_error_of_all(losses, limit):
    """Against every combination, counted by hand."""
    marks, times = scores(), table()
    choices = Choices(SITES, marks, losses, times)
    weights = [(1.0, 2.0), (0.5, 3.0), (2.0, 0.25)]

    def error(layer, size):
        parts = []
        for kind, kept, of in (("heads", size.heads, 4), ("neurons", size.neurons, 96)):
            ordered = marks[f"layers.{layer}.{kind}"].sort().values.tolist()
            gone = ordered[: of - kept]
            if losses == "even":
                parts.append((1 - kept / of) ** 3)
            elif losses == "additive":
                parts.append(sum(gone))
            elif not kept:
                parts.append(1.0)
            elif losses == "cumulative":
                parts.append(gone[-1] if gone else 0.0)
            else:
                parts.append(sum(gone) / sum(ordered))
        return sum(w * e for w, e in zip(weights[layer], parts, strict=True))

    shape = SITES.layers[0]
    sizes = [Size(h, n) for h in heads_kept(shape) for n in neurons_kept(shape)]
    best = min(
        sum(error(i, size) for i, size in enumerate(combination))
        for combination in product(sizes, repeat=3)
        if times.predict(combination) <= limit - 0.1  # times are rounded up
    )
    chosen = choices.of_least_error(limit, weights)
    assert times.predict(chosen) <= limit
    assert sum(error(i, size) for i, size in enumerate(chosen)) <= best + 1e-9


def test_a_time_out_of_reach_names_the_nearest():
    choices = Choices(SITES, scores(), "cumulative", table())
    with pytest.raises(BudgetError, match=r"at least 6 ms.*10 times as fast.*got 5.9 ms"):
        choices.of_least_error(5.9, [(1.0, 1.0)] * 3)


def test_a_time_that_the_whole_model_meets_removes_nothing():
    choices = Choices(SITES, scores(), "cumulative", table())
    sizes = choices.of_least_error(31.0, [(1.0, 1.0)] * 3)
    assert choices.is_whole(sizes)
    assert not choices.plan(sizes).masks
