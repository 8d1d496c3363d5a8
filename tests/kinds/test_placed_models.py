"""Models that accelerate placed: what only runs them takes them as they are, what replaces their
layers says how to take the hooks off, and weights that are not there are refused."""

from __future__ import annotations

import accelerate
import pytest
import torch
from support.models import answer
from support.tiny_models import tiny_batch, tiny_model

import secateurs as sc
from secateurs.errors import ArgumentError, FamilyError

BUDGET = "heads=0.5,neurons=0.5"
PARTS = ("embeddings", "encoder", "pooler")


@pytest.fixture
def placed():
    where = dict.fromkeys(PARTS, "cpu")
    return accelerate.dispatch_model(tiny_model("bert"), where, force_hooks=True)


@pytest.mark.parametrize("method", ["magnitude", "gradient", "kprune", "obs"])
def test_a_placed_model_is_pruned_and_fitted_as_any_other(placed, method):
    model = tiny_model("bert")
    batches = [tiny_batch(model, seed=seed) for seed in range(4)]
    plans, fitted = [], []
    for each in (model, placed):
        plan = sc.prune(each, batches, method=method, budget=BUDGET, progress=False)
        plans.append(plan)
        fitted.append(sc.refit(each, plan, batches, progress=False))
    assert all(plans[0].masks[name].equal(mask) for name, mask in plans[1].masks.items())
    states = [each.state_dict() for each in fitted]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_hooks_are_named_by_what_replaces_layers_and_can_be_taken_off(placed):
    plan = sc.prune(placed, method="magnitude", budget=BUDGET)
    with pytest.raises(FamilyError, match="remove_hook_from_submodules takes that off"):
        sc.convert(placed, plan)
    accelerate.hooks.remove_hook_from_submodules(placed)
    batch = tiny_batch(placed)
    torch.testing.assert_close(
        answer(sc.convert(placed, plan), batch), answer(sc.apply(placed, plan), batch)
    )


def test_weights_that_are_offloaded_are_refused(tmp_path):
    where = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    model = accelerate.dispatch_model(tiny_model("bert"), where, offload_dir=str(tmp_path))
    with pytest.raises(ArgumentError, match="some are offloaded, open it without a device_map"):
        sc.prune(model, method="magnitude", budget=BUDGET)
