"""The gradient method: its derivative by example, by hand, and its rounds."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning.conftest import planned
from support.tiny_models import tiny_model

from secateurs import Budget, Gates, find_sites
from secateurs.pruning.methods.gradient import GradientPruner


def per_example_gradients(model, batch, name) -> torch.Tensor:
    """|dL/dgate| by central differences in float64, one example and one unit at a time."""
    model = copy.deepcopy(model).double()
    sites = find_sites(model)
    size = {s.name: s.shape for s in sites}[name][0]
    total, step = torch.zeros(size, dtype=torch.double), 1e-5

    def loss(example, unit, value) -> float:
        gate = torch.ones(size, dtype=torch.double)
        gate[unit] = value
        with Gates(model, sites) as gates, torch.no_grad():
            gates[name] = gate
            return float(model(**example).loss)

    for i in range(batch["input_ids"].shape[0]):
        example = {k: v[i : i + 1] for k, v in batch.items()}
        for unit in range(size):
            up, down = loss(example, unit, 1 + step), loss(example, unit, 1 - step)
            total[unit] += abs(up - down) / (2 * step)
    return total


def test_gradient_importance_is_the_per_example_derivative(batch):
    """An oracle that shares no code with the method: finite differences of the labelled loss."""
    model = tiny_model("roberta")
    labelled = {**batch, "labels": torch.tensor([0, 1, 0])}
    pruner = GradientPruner(normalize="none")
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    pruner.observe(labelled)
    pruner.end_round()
    scores = pruner.scores()
    for layer in range(3):
        name = f"layers.{layer}.heads"
        want = per_example_gradients(model, labelled, name)
        torch.testing.assert_close(scores[name], want, rtol=1e-3, atol=1e-7)


def test_without_labels_the_importance_estimates_the_curvature(batch):
    """The mean over many probes of (v . df/dgate)^2 is |df/dgate|^2, by finite differences."""
    model = tiny_model("bert")
    sites = find_sites(model)
    pruner = GradientPruner(normalize="none")
    pruner.start(model, sites, Budget(heads=0.5), seed=0)
    rounds = 400
    for _ in range(rounds):
        pruner.observe(batch)
    pruner.end_round()
    keep = batch["attention_mask"].bool()
    for unit in range(4):
        ends = []
        for value in (1.01, 0.99):
            gate = torch.ones(4)
            gate[unit] = value
            with Gates(model, sites) as gates, torch.no_grad():
                gates["layers.1.heads"] = gate
                ends.append(model(**batch)[0][keep].double())
        length = ((ends[0] - ends[1]) / 0.02).norm()
        got = pruner.scores()["layers.1.heads"][unit] / rounds**0.5
        assert float(got) == pytest.approx(float(length), rel=0.15)


def test_a_unit_without_effect_goes_first(batches):
    model = tiny_model("bert")
    with torch.no_grad():
        find_sites(model).linear(model, 1, "output").weight[:, 32:48] = 0
        find_sites(model).linear(model, 0, "down").weight[:, 11] = 0
    plan = planned("gradient", model, batches, "heads=0.09,neurons=0.004")
    assert plan.masks["layers.1.heads"].keep.tolist() == [True, True, False, True]
    assert (~plan.masks["layers.0.neurons"].keep).nonzero().tolist() == [[11]]


def test_what_went_in_an_earlier_round_stays_gone(batches):
    """Round one of two is a whole run with half the budget; round two only adds to it."""
    model = tiny_model("bert")
    first = planned("gradient", model, batches, "heads=0.25")
    both = planned("gradient", model, batches, "heads=0.5", rounds=2)
    assert sum(int(m.keep.sum()) for m in both.masks.values()) == 6
    for name, mask in both.masks.items():
        assert not bool((mask.keep & ~first.masks[name].keep).any())


def test_later_rounds_see_the_model_without_what_is_gone(batch):
    """With labels nothing is random: the same batch again gives other scores because three heads
    are gone, and those of a model that has lost them."""
    model = tiny_model("roberta")
    sites, labelled = find_sites(model), {**batch, "labels": torch.tensor([0, 1, 0])}
    pruner = GradientPruner(rounds=2, normalize="none")
    pruner.start(model, sites, Budget(heads=0.5), seed=0)
    scores = []
    for _ in range(2):
        pruner.observe(labelled)
        pruner.end_round()
        scores.append(dict(pruner.scores()))
    gone = {name: score == -1 for name, score in scores[1].items()}
    assert sum(int(mask.sum()) for mask in gone.values()) == 3
    assert all(bool((scores[1][n][~gone[n]] != scores[0][n][~gone[n]]).any()) for n in gone)
    for name, part in gone.items():
        with torch.no_grad():
            output = sites.linear(model, int(name.split(".")[1]), "output").weight
            output.mul_((~part).repeat_interleave(16))
    fresh = GradientPruner(normalize="none")
    fresh.start(model, sites, Budget(heads=0.5), seed=0)
    fresh.observe(labelled)
    fresh.end_round()
    for name, score in fresh.scores().items():
        stays = ~gone[name]
        torch.testing.assert_close(scores[1][name][stays], score[stays], rtol=1e-4, atol=1e-9)
