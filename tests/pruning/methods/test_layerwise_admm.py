"""layerwise_admm: masks against the iterations by hand, budgets, levels, and what the re-fit makes
of its plans."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from support.models import answer, calibration, relative
from support.tiny_models import tiny_model

from secateurs import (
    Budget,
    Levels,
    Session,
    SparsityPlan,
    apply,
    convert,
    find_sites,
    prune,
    refit,
)
from secateurs.errors import DataError, MethodError
from secateurs.pruning.methods.layerwise_admm import LayerwiseAdmmPruner

FAMILIES = ("bert", "llama", "vit", "gpt2", "gated t5")
BUDGETS = (
    "patterns=0.5,pattern=2:4",
    "patterns=0.5,vector=16",
    "patterns=0.75,pattern=library",
    "weights=0.7",
    "blocks=0.5,block=32x16",
)


def planned(model, batches, budget, **options):
    return prune(model, batches, method="layerwise_admm", budget=budget, progress=False, **options)


def distance(model, dense, batches):
    """Of the outputs, root mean square over that of the dense model's."""
    got, want = (torch.cat([answer(m, batch) for batch in batches]) for m in (model, dense))
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_and_refit_come_closer_than_the_largest_weights(family):
    model = tiny_model(family)
    batches, unseen = calibration(model, 30), calibration(model, 3, seed=9)
    for budget in ("patterns=0.5,vector=16", "weights=0.7"):
        plain = prune(model, method="magnitude", budget=budget)
        plan = planned(model, batches, budget)
        fitted = refit(model, plan, batches, progress=False)
        before = distance(apply(model, plain), model, unseen)
        assert distance(apply(fitted, plan), model, unseen) < 0.85 * before


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_fitted_weights_convert(family, budget):
    """And stand on their levels, where there are any."""
    model = tiny_model(family)
    batches = calibration(model, 4)
    plan = planned(model, batches, budget, bits=4)
    fitted = refit(model, plan, batches, progress=False)
    masked = apply(fitted, plan)
    sites = find_sites(model)
    for site in sites.of_kind("linear"):
        role = site.name.rpartition(".")[2]
        keep = plan.masks[site.name].elements()
        of_fitted, of_masked = (sites.linear(m, site.layer, role).weight for m in (fitted, masked))
        assert torch.equal(of_fitted * keep, of_masked)
        assert not torch.equal(of_masked, sites.linear(model, site.layer, role).weight * keep)
        assert isinstance(plan.levels[site.name], Levels)
    assert relative(answer(convert(fitted, plan), batches[0]), answer(masked, batches[0])) < 1e-4


def test_the_masks_are_chosen_with_the_weights_that_the_refit_gives():
    """The method's own copy of the model, pruned on the way, comes as close as the re-fitted one:
    two ways to one solution."""
    model, budget = tiny_model("bert"), Budget(weights=0.7)
    batches, unseen = calibration(model, 30), calibration(model, 3, seed=9)
    pruner = LayerwiseAdmmPruner()
    pruner.start(model, find_sites(model), budget, seed=0)
    pruner.batches = len(batches)
    for _ in range(pruner.rounds):
        for batch in batches:
            pruner.observe(batch)
        pruner.end_round()
    plan = pruner.plan()
    assert SparsityPlan(planned(model, batches, budget).masks) == SparsityPlan(plan.masks)
    fitted = apply(refit(model, plan, batches, progress=False), plan)
    own = distance(pruner._walk.pruned, model, unseen)
    assert own == pytest.approx(distance(fitted, model, unseen), rel=0.02)


def by_hand(weight, x, with_bias, choose):
    """The mask after 15 iterations in float64, the ridge 0.01, from inputs `[M, K]`."""
    h = x.T @ x
    ridge = 0.01 * np.diag(h).mean()
    if with_bias:
        h = h - len(x) * np.outer(x.mean(0), x.mean(0))
    h = h + ridge * np.eye(len(h))
    d = np.sqrt(np.diag(h))
    hn, v = h / np.outer(d, d), weight * d
    z, u, keep = v, np.zeros_like(v), None
    for _ in range(15):
        moved = np.linalg.solve(hn + np.eye(len(h)), (v @ hn + z - u).T).T + u
        keep = choose(moved)
        z, u = moved * keep, moved - moved * keep
    return keep


def largest(count):
    def choose(scaled):
        keep = np.zeros(scaled.size, bool)
        keep[np.argsort(-(scaled**2).ravel(), kind="stable")[:count]] = True
        return keep.reshape(scaled.shape)

    return choose


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_first_masks_are_those_by_hand(family):
    """Real tokens alone count, and with a bias what they are away from their mean."""
    model, batches = tiny_model(family), calibration(tiny_model(family), 10)
    plan, sites = planned(model, batches, "weights=0.5"), find_sites(model)
    module, read = sites.linear(model, 0, "query").module, []
    hook = module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    hook.remove()
    real = [x[b["attention_mask"].bool()] for x, b in zip(read, batches, strict=True)]
    x = torch.cat(real).double().numpy()
    for role in ("query", "value"):
        view = sites.linear(model, 0, role)
        weight = view.weight.detach().double().numpy()
        want = by_hand(weight, x, view.bias is not None, largest(weight.size // 2))
        assert np.array_equal(plan.masks[f"layers.0.{role}"].keep.numpy(), want)


def test_every_linear_loses_the_same_share():
    model = tiny_model("bert")
    plan = planned(model, calibration(model, 2), "weights=0.333")
    for mask in plan.masks.values():
        assert abs(int((~mask.keep).sum()) - 0.333 * mask.keep.numel()) <= 1


def test_later_layers_are_fitted_to_what_earlier_ones_lost():
    """With the first layer's linears on few levels, the plan of the others is another."""
    model, batches = tiny_model("bert"), calibration(tiny_model("bert"), 10)
    coarse, fine = (planned(model, batches, "weights=0.5", bits=bits) for bits in (2, 0))
    same = {name: coarse.masks[name].equal(mask) for name, mask in fine.masks.items()}
    assert all(same[f"layers.0.{role}"] for role in ("query", "key", "value"))
    assert not any(same[f"layers.2.{role}"] for role in ("query", "key", "value"))


def test_a_training_may_begin_with_the_fitted_weights():
    """admm_pattern finds the masks in them, and keeps them while nothing else moves."""
    model = tiny_model("roberta")
    batches = calibration(model, 8)
    plan = planned(model, batches, "patterns=0.5,vector=16")
    start = apply(refit(model, plan, batches, progress=False), plan)
    with Session(start, "admm_pattern", budget="patterns=0.5,vector=16", steps=12) as session:
        still = torch.optim.SGD(start.parameters(), lr=0.0)
        for batch in (batches * 2)[:12]:
            labels = torch.arange(6) % 2
            (start(**batch, labels=labels).loss + session.penalty()).backward()
            session.after_backward()
            still.step()
            session.after_step()
    assert SparsityPlan(session.plan.masks) == SparsityPlan(plan.masks)


def test_padding_does_not_count():
    model, batches = tiny_model("bert"), calibration(tiny_model("bert"), 6)
    others = [{**b, "input_ids": b["input_ids"].clone()} for b in batches]
    for batch in others:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    first, second = (planned(model, b, "patterns=0.5,vector=16") for b in (batches, others))
    assert first == second


def test_inputs_that_are_always_zero_are_no_obstacle():
    """A dead neuron, and a hidden unit that every norm silences."""
    model, batches = tiny_model("llama"), calibration(tiny_model("llama"), 6)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[3] = 0
            layer.input_layernorm.weight[5] = 0
    plan = planned(model, batches, "patterns=0.5,vector=16")
    fitted = refit(model, plan, batches, progress=False)
    assert all(bool(torch.isfinite(p).all()) for p in fitted.parameters())
    unseen = calibration(model, 3, seed=9)
    plain = apply(model, prune(model, method="magnitude", budget="patterns=0.5,vector=16"))
    assert distance(apply(fitted, plan), model, unseen) < distance(plain, model, unseen)


def test_few_tokens_are_told(caplog):
    model = tiny_model("bert")
    one = [{name: x[:1, :4] for name, x in calibration(model, 1)[0].items()}]
    with caplog.at_level(logging.WARNING, "secateurs"):
        plan = planned(model, one, "weights=0.5")
    assert "layers.0.query+key+value is fitted to 4 tokens" in caplog.text
    assert plan.masks


def test_bad_input_is_refused():
    model = tiny_model("bert")
    with pytest.raises(DataError, match="at least one batch"):
        planned(model, [], "weights=0.5")
    for budget in ("heads=0.5", "neurons=0.5,weights=0.5", "parameters=0.5"):
        with pytest.raises(MethodError, match="prunes blocks, patterns, weights; the budget names"):
            planned(model, calibration(model, 1), budget)
    for options, words in (
        ({"iterations": 0}, "at least one iteration"),
        ({"ridge": -1.0}, "ridge of at least 0, got 15 and -1.0"),
        ({"bits": 1}, "2 to 8 bits or 0 for none, got 1"),
    ):
        with pytest.raises(MethodError, match=words):
            planned(model, calibration(model, 1), "weights=0.5", **options)
    model.embeddings.LayerNorm.weight.data[0] = float("nan")
    with pytest.raises(MethodError, match="finite activations"):
        planned(model, calibration(model, 1), "weights=0.5")
