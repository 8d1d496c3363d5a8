from __future__ import annotations

import copy

import pytest
import torch
from support.models import answer
from support.plans import PLANS, skip_unless_followed
from support.tiny_models import tiny_model

from secateurs import SparsityPlan, apply, distill
from secateurs.errors import DataError, PlanError


def distance(student, teacher, batch) -> float:
    return float((answer(student, batch) - answer(teacher, batch)).square().mean())


@pytest.mark.parametrize(
    "name", ["uneven", "blocks", "no ffn in the last layer", "attention rules"]
)
def test_distillation_brings_the_pruned_model_closer(model, batch, name):
    skip_unless_followed(model, PLANS[name])
    plan = SparsityPlan(PLANS[name])
    state = copy.deepcopy(model.state_dict())
    student = distill(model, plan, [batch], steps=30, lr=3e-3, progress=False)
    before = distance(apply(model, plan), model, batch)
    assert distance(apply(student, plan), model, batch) < 0.7 * before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_the_plan_removes_is_not_trained(batch):
    model = tiny_model("bert")
    plan = SparsityPlan(PLANS["uneven"])
    student = distill(model, plan, [batch], steps=3, lr=1e-2, progress=False)
    for name in ("query", "key", "value"):
        linear = getattr(student.encoder.layer[0].attention.self, name)
        dense = getattr(model.encoder.layer[0].attention.self, name)
        assert torch.equal(linear.weight[:16], dense.weight[:16])
        assert not torch.equal(linear.weight[16:], dense.weight[16:])


def test_a_seed_fixes_the_result(batch):
    plan = SparsityPlan(PLANS["uneven"])
    other = {"input_ids": batch["input_ids"].flip(0)}
    first, again = (
        distill(tiny_model("bert"), plan, [batch, other], steps=4, seed=5, progress=False)
        for _ in range(2)
    )
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_input_is_refused(batch):
    model, plan = tiny_model("bert"), SparsityPlan()
    with pytest.raises(DataError, match="empty dataset"):
        distill(model, plan, [])
    with pytest.raises(DataError, match="at least one step"):
        distill(model, plan, [batch], steps=0)
    with pytest.raises(PlanError, match="does not have"):
        distill(model, SparsityPlan({"layers.8.heads": PLANS["uneven"]["layers.0.heads"]}), [batch])
