from __future__ import annotations

import copy

import pytest
import torch
from conftest import tiny_model
from models import answer, relative

from secateurs import BlockMask, Gates, HeadMask, ModuleMask, SparsityPlan, apply, find_sites
from secateurs.errors import PlanError


def test_leaving_restores_the_model_to_the_bit(model, batch):
    before, want = copy.deepcopy(model.state_dict()), answer(model, batch)
    parameters = {id(p) for p in model.parameters()}
    with Gates(model, find_sites(model)) as gates:
        gates["layers.0.heads"] = torch.tensor([0.0, 0.5, 1.0, 2.0])
        gates["layers.1.ffn"] = torch.tensor(0.0)
        gates["layers.2.up"] = torch.zeros(96, 64)
        assert not torch.equal(answer(model, batch), want)
    assert torch.equal(answer(model, batch), want)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {id(p) for p in model.parameters()} == parameters
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hard_gates_compute_what_apply_computes(model, batch):
    masks = {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, False])),
        "layers.0.up": BlockMask(torch.rand(6, 4) < 0.5, (16, 16)),
        "layers.1.attention": ModuleMask(torch.tensor(False)),
        "layers.2.layer": ModuleMask(torch.tensor(False)),
    }
    plan = SparsityPlan(masks)
    want = answer(apply(model, plan), batch)
    with Gates(model, find_sites(model)) as gates:
        gates.set_plan(plan)
        assert relative(answer(model, batch), want) < 1e-5


def test_a_head_gate_at_the_context_equals_one_on_the_output_projection(batch):
    model = tiny_model("bert")
    sites = find_sites(model)
    scale = torch.tensor([0.3, 1.0, -0.5, 2.0])
    with Gates(model, sites) as gates:
        gates["layers.1.heads"] = scale
        gated = answer(model, batch)
    with torch.no_grad():
        output = sites.linear(model, 1, "output")
        output.weight.mul_(scale.repeat_interleave(16))
    assert relative(gated, answer(model, batch)) < 1e-5


def test_gates_with_a_batch_dimension_act_per_example(batch):
    model = tiny_model("bert")
    each = torch.tensor([[1.0, 1, 1, 1], [0.0, 1, 1, 0], [0.5, 2, 1, 1]])
    rows = []
    for row in each:
        with Gates(model, find_sites(model)) as gates:
            gates["layers.0.heads"] = row
            rows.append(model(**batch)[0].detach())
    with Gates(model, find_sites(model)) as gates:
        gates["layers.0.heads"] = each
        together = model(**batch)[0].detach()
    for i in range(3):
        torch.testing.assert_close(together[i], rows[i][i], rtol=1e-5, atol=1e-6)


def test_module_gates_with_a_batch_dimension(batch):
    model = tiny_model("bert")
    with Gates(model, find_sites(model)) as gates:
        gates["layers.0.ffn"] = torch.tensor([1.0, 0.0, 1.0])
        some = model(**batch)[0].detach()
    assert torch.equal(some[0], model(**batch)[0][0])
    assert not torch.allclose(some[1], model(**batch)[0][1], atol=1e-3)


def test_gradients_reach_soft_gates(batch):
    model = tiny_model("bert")
    gate = torch.ones(96, requires_grad=True)
    with Gates(model, find_sites(model)) as gates:
        gates["layers.1.neurons"] = gate
        model(**batch)[0].square().sum().backward()
    assert gate.grad is not None
    assert int((gate.grad != 0).sum()) == 96


def test_gates_refuse_unknown_sites_wrong_shapes_and_use_outside():
    model = tiny_model("bert")
    gates = Gates(model, find_sites(model))
    with pytest.raises(PlanError, match="inside"):
        gates["layers.0.heads"] = torch.ones(4)
    with gates:
        with pytest.raises(PlanError, match="no such site"):
            gates["layers.7.heads"] = torch.ones(4)
        with pytest.raises(PlanError, match="must have shape"):
            gates["layers.0.heads"] = torch.ones(5)
        with pytest.raises(PlanError, match="must have shape"):
            gates["layers.0.up"] = torch.ones(3, 96, 64)
