"""Layers that run as one operation: the same numbers as their parts, and never of stale modules."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from support.models import relative
from support.tiny_models import tiny_model
from torch import nn

from secateurs import HeadMask, ModuleMask, SparsityPlan, convert, explain, find_sites, use_backend
from secateurs.conversion.cost import CostTable
from secateurs.conversion.modules import Layer
from secateurs.conversion.report import conversion_of
from secateurs.errors import OperandError

IDS = torch.arange(3, 30).view(3, 9)


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


@pytest.fixture
def model():
    return convert(tiny_model("bert"), SparsityPlan())


def layers(model):
    return [m for m in model.modules() if isinstance(m, Layer)]


def in_parts(model, **inputs):
    """What the layers compute part by part."""
    parts = copy.deepcopy(model)
    for layer in layers(parts):
        layer.whole = None
    return parts(**inputs)[0]


def assert_current(model, **inputs):
    """Run twice, the second time bound as before."""
    inputs = {"input_ids": IDS, **inputs}
    for _ in range(2):
        assert relative(model(**inputs)[0], in_parts(model, **inputs)) < 1e-6


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_encoders_run_whole(kind):
    model = convert(tiny_model(kind), SparsityPlan())
    assert all(layer.whole for layer in layers(model))
    mask = torch.arange(9) < torch.tensor([[9], [5], [7]])
    assert_current(model)
    assert_current(model, attention_mask=mask.long())
    reports = [r for r in explain(model) if r.site.endswith(".layer")]
    assert {r.action for r in reports} == {"one operation"}
    assert len(reports) == len(layers(model))


def test_decoders_run_in_parts_and_say_why():
    model = convert(tiny_model("llama"), SparsityPlan())
    reports = [r for r in explain(model) if r.site.endswith(".layer")]
    assert {(r.action, r.reason) for r in reports} == {
        ("in parts", "its norms come before the sub-layers")
    }
    assert not any(layer.whole for layer in layers(model))


def test_pruned_layers_run_whole():
    gone = ModuleMask(torch.tensor(False))
    plan = SparsityPlan(
        {
            "layers.0.heads": HeadMask(torch.tensor([True, False, True, True])),
            "layers.1.attention": gone,
            "layers.2.ffn": gone,
        }
    )
    model = convert(tiny_model("bert"), plan)
    assert all(layer.whole for layer in layers(model))
    assert_current(model)


def test_a_bias_left_behind_runs_in_parts():
    plan = SparsityPlan({"layers.1.heads": HeadMask(torch.zeros(4).bool())})
    model = convert(tiny_model("bert"), plan)
    assert [layer.whole is None for layer in layers(model)] == [False, True, False]
    (report,) = [r for r in explain(model) if r.site == "layers.1.layer"]
    assert report.reason == "a sub-layer left its bias behind"
    assert_current(model)


def test_the_one_operation_really_runs(model, monkeypatch):
    """And once for each layer, however it is called."""
    calls = []
    for layer in layers(model):
        monkeypatch.setattr(layer.attention, "forward", lambda *_: calls.append("parts"))
    model(IDS)
    assert not calls


def test_weights_written_over_are_seen(model):
    model(IDS)
    for layer in layers(model):
        for tensor in (*layer.buffers(), *layer.parameters()):
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    assert_current(model)


def test_weights_replaced_are_seen(model):
    model(IDS)
    layer = layers(model)[1]
    layer.ffn.up.values = nn.Buffer(layer.ffn.up.values * 2)
    layer.attention.output.bias = nn.Buffer(layer.attention.output.bias + 1)
    layer.ffn_norm.weight = nn.Parameter(layer.ffn_norm.weight * 3)
    assert_current(model)


def test_data_replaced_is_seen(model):
    model(IDS)
    norm = layers(model)[0].attention_norm
    norm.bias.data = norm.bias.data + 1
    assert_current(model)


def test_copies_have_their_own_weights(model):
    before = model(IDS)[0]
    other = copy.deepcopy(model)
    for layer in layers(other):
        layer.ffn.down.values.mul_(2)
    assert_current(other)
    assert torch.equal(model(IDS)[0], before)


def test_a_module_replaced_runs_in_parts(model):
    model(IDS)
    layers(model)[0].ffn.down = nn.Identity()
    layers(model)[0].ffn.down.forward = lambda h, residual: residual
    removed = convert(
        tiny_model("bert"), SparsityPlan({"layers.0.ffn": ModuleMask(torch.tensor(False))})
    )
    assert relative(model(IDS)[0], removed(IDS)[0]) < 1e-6


def test_a_mask_of_pairs_runs_in_parts(model):
    pairs = torch.rand(3, 9, 9) < 0.6
    pairs |= torch.eye(9).bool()
    assert_current(model, attention_mask=pairs[:, None])


def test_weights_that_lie_apart_are_not_bound(model):
    norm = layers(model)[0].attention_norm
    norm.bias.data = torch.stack((norm.bias.data, norm.bias.data + 1), dim=1)[:, 0]
    norm.bias.data += torch.arange(len(norm.bias))
    assert_current(model)


def test_what_keeps_a_layer_in_parts(model):
    layer = layers(model)[0]
    layer.attention.causal = True
    assert layer.why_in_parts() == "its attention is causal"
    layer.attention.causal = False
    layer.ffn.activation = nn.Tanh()
    assert "an activation without a kernel" in layer.why_in_parts()
    layer.ffn.activation = None
    layer.attention_norm = nn.LayerNorm(64, elementwise_affine=False)
    assert layer.why_in_parts() == "its norms are not LayerNorms with a weight"


def test_hooks_are_called(model):
    seen = []
    for name, module in layers(model)[1].named_modules():
        if name:
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(IDS)
    assert set(seen) == {name for name, _ in layers(model)[1].named_modules() if name}
    seen.clear()
    handle = layers(model)[2].ffn.register_forward_pre_hook(lambda *_: seen.append("before"))
    model(IDS)
    assert "before" in seen
    handle.remove()


@pytest.mark.parametrize("change", ["a setting", "a module more", "a norm's eps", "a forward hook"])
def test_whatever_changes_is_seen_by_the_next_call(model, change):
    model(IDS)
    layer = layers(model)[1]
    before = model(IDS)[0]
    if change == "a setting":
        layer.attention.scale *= 4
    elif change == "a module more":
        layer.ffn.activation = nn.Tanh()
    elif change == "a norm's eps":
        layer.ffn_norm.eps = 0.5
    else:
        layer.ffn.register_forward_hook(lambda module, args, y: y.flip(-1))
    assert relative(model(IDS)[0], before) > 1e-3
    assert_current(model)


def test_weights_swapped_for_one_call_are_seen(model):
    """`functional_call` writes into the dictionaries of modules, past their `__setattr__`."""
    before = model(IDS)[0]
    name = "encoder.layer.1.ffn_norm.bias"
    other = {name: model.get_parameter(name) + 1}
    swapped = torch.func.functional_call(model, other, (IDS,))[0]
    assert relative(swapped, before) > 1e-3
    assert torch.equal(model(IDS)[0], before)
    model.get_parameter(name).add_(1)
    assert torch.equal(model(IDS)[0], swapped)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_remembers_what_changed_before(model, how):
    layer = layers(model)[1]
    layer.ffn.down = nn.Identity()
    layer.ffn.down.forward = residual_alone
    layers(model)[2].attention.scale *= 4
    expected = model(IDS)[0]
    other = how(model)
    assert torch.equal(other(IDS)[0], expected)
    layers(other)[0].attention.scale *= 4
    assert relative(other(IDS)[0], expected) > 1e-3


def residual_alone(h, residual):
    return residual


def test_weights_go_with_the_layer_that_held_them(model):
    """Nothing waits for the garbage to be collected, and a cast frees what it replaced."""
    layer = copy.deepcopy(layers(model)[0])
    layer(torch.randn(1, 3, 64))
    replaced, held = weakref.ref(layer.ffn.up.values), weakref.ref(layer.ffn_norm.bias)
    layer.bfloat16()
    assert replaced() is None
    layer(torch.randn(1, 3, 64).bfloat16())
    del layer
    assert held() is None


def test_another_dtype_computes_the_same(model):
    assert_current(model)
    double = copy.deepcopy(model).double()
    assert relative(double(IDS)[0], model(IDS)[0].double()) < 1e-5
    assert relative(double.float()(IDS)[0], model(IDS)[0]) < 1e-5


def test_states_of_another_dtype_are_refused_in_words(model):
    layer = layers(model)[0]
    x = torch.randn(2, 5, model.config.hidden_size)
    layer(x)
    with pytest.raises(OperandError, match=r"expected x \[B, T, 64\] of torch.float32"):
        layer(x.bfloat16())
    with pytest.raises(OperandError, match=r"got \(2, 5, 63\)"):
        layer(x[..., :63])
    with pytest.raises(OperandError, match="key_mask bool of shape"):
        layer(x, torch.ones(2, 4).bool())


def test_gradients_flow_through_the_parts(model):
    with torch.enable_grad():
        x = torch.randn(1, 4, model.config.hidden_size, requires_grad=True)
        layers(model)[0](x).sum().backward()
    assert x.grad is not None


def test_forced_backends_are_asked(model):
    expected = model(IDS)[0]
    with use_backend("reference"):
        assert relative(model(IDS)[0], expected) < 1e-5
        assert not torch.equal(model(IDS)[0], expected)


class Given(CostTable):
    """A table in which torch's own products are the fastest, and a whole layer takes as long as
    told."""

    def __init__(self, whole: float) -> None:
        super().__init__(torch.device("cpu"), None)
        self.given = {"torch": 1.0, "in parts": 2.0, "one operation": whole}

    def times(self, name, forms, x, residual):
        return {form: self.given.get(form, 3.0) for form in forms}


@pytest.mark.parametrize(("whole", "action"), [(1.5, "one operation"), (2.5, "in parts")])
def test_the_faster_of_whole_and_parts_is_picked(whole, action):
    stock = tiny_model("bert", hidden_size=128, intermediate_size=256)
    model = convert(stock, SparsityPlan(), costs=Given(whole))
    for i, layer in enumerate(layers(model)):
        reports = {r.site: r for r in explain(model)}
        assert reports[f"layers.{i}.layer"].action == action
        assert "in parts 2.000 ms" in reports[f"layers.{i}.layer"].reason
        assert (layer.whole is not None) == (action == "one operation")
        up = reports[f"layers.{i}.up"].action
        assert up == ("dense panels" if layer.whole else "torch")
    assert set(conversion_of(model).forms) == {
        f"layers.{i}.{part}"
        for i in range(len(find_sites(stock).layers))
        for part in ("query+key+value", "output", "up", "down")
    }
    assert relative(model(IDS)[0], stock(IDS)[0]) < 1e-5
