from __future__ import annotations

import copy

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_batch, tiny_model

from secateurs import (
    AttentionRuleMask,
    BlockMask,
    Gates,
    HeadMask,
    ModuleMask,
    SparsityPlan,
    apply,
    find_sites,
)
from secateurs.errors import PlanError
from secateurs.masking.gates import straight_through
from secateurs.plan.attention_rules import Local, Sinks
from secateurs.plan.quantization import Levels
from secateurs.pruning.activations import units_read


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
    if model._supports_sdpa:
        masks["layers.0.attention_rules"] = AttentionRuleMask([Local(1), Sinks(1)] * 2)
    plan = SparsityPlan(masks)
    want = answer(apply(model, plan), batch)
    with Gates(model, find_sites(model)) as gates:
        gates.set_plan(plan)
        assert relative(answer(model, batch), want) < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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


def test_straight_through_passes_the_gradient_as_if_the_gate_were_one(batch):
    """Against a model whose gated values are multiplied by hand, gradient by gradient."""
    model = tiny_model("bert")
    sites = find_sites(model)
    weight = sites.linear(model, 1, "up").weight
    mask = (torch.rand(96, 64, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    with Gates(model, sites) as gates:
        gates.set("layers.1.up", mask, straight_through=True)
        through = model(**batch)[0]
        through.square().sum().backward()
        got, weight.grad = weight.grad, None
        gates.set("layers.1.up", mask)
        assert torch.equal(model(**batch)[0], through)
        model(**batch)[0].square().sum().backward()
        hard, weight.grad = weight.grad, None
    with torch.no_grad():
        weight.mul_(mask)
    model(**batch)[0].square().sum().backward()
    assert relative(got, weight.grad) < 1e-5
    assert relative(hard, weight.grad * mask) < 1e-5
    assert not torch.allclose(got, hard)


def test_the_hard_value_carries_a_soft_gradient():
    soft = torch.tensor([0.2, 0.9], requires_grad=True)
    value = straight_through((soft > 0.5).float(), soft)
    assert value.tolist() == [0.0, 1.0]
    (value * torch.tensor([3.0, 5.0])).sum().backward()
    assert soft.grad.tolist() == [3.0, 5.0]


def test_watchers_see_what_the_gate_multiplies_and_callbacks_the_inputs(batch):
    model = tiny_model("bert")
    seen, wanted, asked = {}, {}, []
    names = ("layers.0.heads", "layers.1.neurons", "layers.2.attention", "layers.2.ffn",
             "layers.0.query")  # fmt: skip
    layer = model.encoder.layer
    hooks = [
        layer[0].attention.output.dense.register_forward_pre_hook(
            lambda m, a: wanted.__setitem__(names[0], a[0])
        ),
        layer[1].output.dense.register_forward_pre_hook(
            lambda m, a: wanted.__setitem__(names[1], a[0])
        ),
        layer[2].attention.output.dense.register_forward_hook(
            lambda m, a, o: wanted.__setitem__(names[2], o)
        ),
        layer[2].output.dense.register_forward_hook(
            lambda m, a, o: wanted.__setitem__(names[3], o)
        ),
        layer[0].attention.self.query.register_forward_pre_hook(
            lambda m, a: wanted.__setitem__(names[4], a[0])
        ),
    ]
    with Gates(model, find_sites(model)) as gates:
        gates.on_forward(lambda inputs: asked.append(inputs["attention_mask"]))
        gates["layers.0.heads"] = torch.zeros(4)  # gates before their watchers
        gates["layers.2.attention"] = torch.tensor(0.0)
        for name in names:
            gates.watch(name, lambda value, name=name: seen.__setitem__(name, value))
        gates["layers.2.ffn"] = torch.tensor(0.0)  # and one after its own
        model(**batch)
    assert len(asked) == 1
    assert torch.equal(asked[0], batch["attention_mask"])
    for name in names:
        assert torch.equal(seen[name], wanted[name]), name
        assert bool(seen[name].any())
    for hook in hooks:
        hook.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gates_of_examples_and_watchers_where_a_layer_runs_all_tokens_as_one(batch):
    """An OPT's FFN is given the tokens of all examples, one below the other."""
    model, seen = tiny_model("opt"), {}
    random = torch.Generator().manual_seed(3)
    neurons, whole = torch.rand(3, 96, generator=random), torch.rand(3, generator=random)
    with Gates(model, find_sites(model)) as gates:
        gates["layers.0.neurons"], gates["layers.1.ffn"] = neurons, whole
        for part in ("neurons", "ffn"):
            gates.watch(f"layers.1.{part}", lambda x, part=part: seen.__setitem__(part, x.shape))
        got = model(**batch).logits
    assert seen == {"neurons": (3, 9, 96), "ffn": (3, 9, 64)}
    for i in range(3):
        with Gates(model, find_sites(model)) as gates:
            gates["layers.0.neurons"], gates["layers.1.ffn"] = neurons[i], whole[i]
            alone = model(**{name: value[i : i + 1] for name, value in batch.items()}).logits
        keep = batch["attention_mask"][i].bool()
        assert relative(got[i, keep], alone[0, keep]) < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_units_are_read_on_real_tokens(kind, batch):
    model, read = tiny_model(kind), {}
    sites = find_sites(model)
    names = ["layers.0.heads", "layers.2.neurons"]
    with torch.no_grad(), units_read(model, sites, names, batch, read.__setitem__):
        model(**batch)
    tokens = int(batch["attention_mask"].sum())
    assert {name: tuple(x.shape) for name, x in read.items()} == {
        "layers.0.heads": (tokens, 64),
        "layers.2.neurons": (tokens, 96),
    }


def test_folding_leaves_the_function_and_opens_the_gate(batch):
    model = tiny_model("bert")
    weight = model.encoder.layer[1].output.dense.weight
    before = weight.detach().clone()
    with Gates(model, find_sites(model)) as gates:
        gates["layers.1.down"] = torch.full((64, 96), 0.25)
        want = answer(model, batch)
        gates.fold("layers.1.down")
        assert torch.equal(weight, 0.25 * before)
        assert relative(answer(model, batch), want) < 1e-6
    assert relative(answer(model, batch), want) < 1e-6


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_gates_of_units_fold_into_what_they_feed(family):
    model = tiny_model(family)
    batch = tiny_batch(model)
    with Gates(model, find_sites(model)) as gates:
        gates["layers.1.heads"] = torch.tensor([0.5, 1.0, 0.0, 2.0])
        gates["layers.0.neurons"] = torch.linspace(0, 1, 96)
        want = answer(model, batch)
        for name in list(gates):
            gates.fold(name)
            assert bool((gates[name] == 1).all())
        assert relative(answer(model, batch), want) < 1e-6
        gates["layers.1.attention"] = torch.tensor(0.5)
        gates["layers.1.heads"] = torch.ones(3, 4)
        for name in ("layers.1.attention", "layers.1.heads"):
            with pytest.raises(PlanError, match=f"one for all examples, got that of {name}"):
                gates.fold(name)
    assert relative(answer(model, batch), want) < 1e-6


def test_gates_opened_again_remember_nothing(batch):
    model = tiny_model("bert")
    want, gates = answer(model, batch), Gates(model, find_sites(model))
    with gates:
        gates.set("layers.1.up", torch.zeros(96, 64), straight_through=True)
        gates.set_levels("layers.1.up", Levels(2, 0.05))
    with gates:
        assert not gates
        gates["layers.1.up"] = torch.ones(96, 64)
        assert torch.equal(answer(model, batch), want)


def test_a_forward_replaced_by_another_is_put_back(batch):
    model = tiny_model("bert")
    linear = model.encoder.layer[0].intermediate.dense
    plain = linear.forward
    linear.forward = other = lambda x: 2 * plain(x)
    with Gates(model, find_sites(model)) as gates:
        gates["layers.0.up"] = torch.zeros(96, 64)
        answer(model, batch)
    assert linear.forward is other
