"""SEVEN against its formula, step by step in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_model
from support.training import classifier, labelled, optimizer, steps

from secateurs import Budget, find_sites, prune
from secateurs.errors import DataError
from secateurs.pruning.methods.seven import Sensitivity, SevenPrePruner
from secateurs.pruning.session import Session

QUERY = "layers.1.query"


def oracle(gradients, weights, a, b, signed=False):
    """S after each step, from gradients and post-step weights, in the order of the paper."""
    m = v = s = np.zeros_like(gradients[0], dtype=np.float64)
    found = []
    for i, (gradient, w) in enumerate(zip(gradients, weights, strict=True)):
        g = gradient if signed else np.abs(gradient)
        m = a * m + (1 - a) * g
        v = b * v + (1 - b) * g * g
        ratio = (m / (1 - a ** (i + 1))) / (np.sqrt(v / (1 - b ** (i + 1))) + 1e-9)
        s = s + np.abs(w * g * ratio)
        found.append(s)
    return found


@pytest.mark.parametrize("signed", [False, True])
def test_the_score_is_that_of_the_formula(signed):
    random = np.random.default_rng(0)
    gradients, weights = random.normal(size=(2, 6, 5, 3))
    got = Sensitivity(torch.zeros(5, 3), 0.8, 0.9, signed)
    for g, w, want in zip(
        gradients, weights, oracle(gradients, weights, 0.8, 0.9, signed), strict=True
    ):
        got.weight = torch.tensor(w)
        got.read(torch.tensor(g))
        got.accumulate(None)
        np.testing.assert_allclose(got.score.numpy(), want, rtol=1e-5)


@pytest.mark.parametrize(("kind", "want"), [("constant", 1.0), ("gaussian", 0.81), ("rare", 0.26)])
def test_the_ratio_keeps_steady_gradients_and_sinks_rare_ones(kind, want):
    """Mean m / sqrt(v) at equal decays of 0.8 where there is a gradient at all, as published."""
    random = np.random.default_rng(1)
    size, count = 20_000, 60
    gradients = random.normal(size=(count, size))
    if kind == "constant":
        gradients = np.full((count, size), -0.3)
    if kind == "rare":
        gradients = np.where(random.random((count, size)) < 0.1, 1.0, 0.0)
    sensitivity = Sensitivity(torch.ones(size), 0.8, 0.8, signed=False)
    ratios = []
    for i, g in enumerate(gradients):
        sensitivity.read(torch.tensor(g))
        m = sensitivity.m / (1 - 0.8 ** (i + 1))
        v = sensitivity.v / (1 - 0.8 ** (i + 1))
        if i > 30:
            ratios.append(float((m / (v.sqrt() + 1e-9)).mean()))
    assert want - 1e-6 <= np.mean(ratios) < want + 0.01  # the published figures are cut off


def test_what_is_gone_scores_nothing_and_all_else_something():
    sensitivity = Sensitivity(torch.tensor([1.0, 2.0, 0.0]), 0.8, 0.9, False)
    sensitivity.read(torch.ones(3))
    sensitivity.accumulate(torch.tensor([1.0, 0.0, 1.0]))
    assert sensitivity.score[1] == 0
    assert sensitivity.score[2] > 0
    sensitivity.read(torch.ones(3))
    sensitivity.accumulate(torch.tensor([1.0, 0.0, 1.0]))
    assert sensitivity.score.tolist()[:2] == [2.0, 0.0]


@pytest.mark.parametrize(
    "budget", ["weights=0.7", "blocks=0.75,block=16x32", "patterns=0.5,vector=8"]
)
def test_the_share_removed_follows_the_schedule_and_nothing_comes_back(budget):
    count = 20
    with Session(classifier(), "seven", budget=budget, steps=count, every=1) as session:
        before = None
        target = next(iter(session.budget.asked().values()))
        for i in steps(session, optimizer(session), labelled(), count):
            gates = session.pruner.gates
            if i + 1 <= 2:  # begins at a tenth
                assert not len(gates)
                continue
            keep = torch.cat([gates[n].flatten() for n in gates]) if len(gates) else None
            progress = min((i + 1 - 2) / 12, 1)
            want = target * (1 - (1 - progress) ** 3)
            if "weights" in budget:
                total = 3 * (4 * 64 * 64 + 2 * 64 * 96)
                assert keep.numel() - int(keep.sum()) == int(want * total + 0.5)
            if "patterns" in budget:
                kept = max(2, np.ceil(4 - 4 * want))
                if kept < 4:
                    groups = gates[QUERY].view(8, 8, 16, 4)
                    assert set(groups.sum(-1).flatten().tolist()) == {kept}
                    assert torch.equal(groups, groups[:, :1].expand_as(groups))
                else:
                    assert not len(gates)
            if before is not None and len(before) == len(keep):
                assert not bool((keep > before).any())
            before = keep if keep is not None else before
        assert before is not None


def test_a_weight_that_matters_stays_though_it_is_small():
    """One entry of a key matters to a loss made for it: magnitude would drop it."""
    model, sites = classifier(), None
    sites = find_sites(model)
    weight = sites.linear(model, 1, "query").weight
    with torch.no_grad():
        weight[3, 5] = 1e-3
    pruner = SevenPrePruner()
    pruner.start(model, sites, Budget(weights=0.5), seed=0)
    pruner._track()
    sensitivity = pruner._sensitivities[QUERY]
    for _ in range(3):
        gradient = torch.full_like(weight, 1e-4)
        gradient[3, 5] = 1e3
        sensitivity.read(gradient)
        sensitivity.accumulate(None)
    assert int(sensitivity.score.argmax()) == 3 * 64 + 5


def test_before_training_every_batch_moves_the_schedule_and_masks_the_model():
    model, batches = classifier(), labelled(4)
    pruner = SevenPrePruner()
    pruner.start(model, find_sites(model), Budget(weights=0.8), seed=0)
    pruner.batches = 4
    shares = []
    for batch in batches:
        pruner.observe(batch)
        gates = torch.cat([g.flatten() for g in pruner._shut.values()])
        shares.append(1 - float(gates.mean()))
    np.testing.assert_allclose(shares, [0.8 * (1 - (1 - i / 4) ** 3) for i in (1, 2, 3, 4)], 1e-3)
    # What is gone has no gradient: its moments stay 0 from the batch after it went.
    gone = pruner._shut[QUERY] == 0
    m = pruner._sensitivities[QUERY].m.clone()
    pruner._sensitivities[QUERY].m.zero_()
    pruner.observe(batches[0])
    assert not bool(pruner._sensitivities[QUERY].m[gone].any())
    assert bool(m.any())


def test_labels_are_needed(batch):
    with pytest.raises(DataError, match="labels and a model with a task head"):
        prune(tiny_model("bert"), [batch], method="seven_pre", budget="weights=0.5")
