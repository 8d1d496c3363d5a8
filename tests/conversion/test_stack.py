"""Stacks of layers that run as one call: the same numbers as a loop over the layers, and a loop
wherever somebody looks between them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.tiny_models import tiny_model
from torch import nn
from torch.nn.modules import module as every_module

from secateurs import SparsityPlan, convert, load, ops, save, use_backend
from secateurs.architectures.plain_loop import plain_loop
from secateurs.conversion.modules import Layer, Skip
from secateurs.errors import OperandError

IDS = torch.arange(3, 30).view(3, 9)
PADDED = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


@pytest.fixture
def model():
    return convert(tiny_model("bert"), SparsityPlan())


@pytest.fixture
def calls(monkeypatch):
    """How many layers each call of the operation took."""
    seen, run = [], ops.encoder_layers
    monkeypatch.setattr(
        ops, "encoder_layers", lambda given, *a: seen.append(len(given)) or run(given, *a)
    )
    return seen


def layers(model):
    return [m for m in model.modules() if isinstance(m, Layer)]


def in_a_loop(model, **inputs):
    """What the layers compute one by one."""
    apart = copy.deepcopy(model)
    layers(apart)[0].register_forward_hook(lambda *_: None)
    return apart(**inputs)[0]


@pytest.mark.parametrize("precision", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_one_call_gives_what_a_loop_gives(kind, dtype, precision, calls):
    model = convert(tiny_model(kind).to(dtype), SparsityPlan(), precision=precision)
    calls.clear()
    for inputs in ({}, {"attention_mask": PADDED}):
        whole = model(input_ids=IDS, **inputs)[0]
        assert calls == [len(layers(model))]
        assert torch.equal(whole, in_a_loop(model, input_ids=IDS, **inputs))
        assert len(calls) == 1
        calls.clear()


@pytest.mark.parametrize("place", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_see_every_layer(model, calls, place):
    expected, seen = model(IDS)[0], []
    handle = getattr(layers(model)[1], place)(lambda *_: seen.append(1))
    calls.clear()
    assert torch.equal(model(IDS)[0], expected)
    assert seen == [1]
    assert calls == []
    handle.remove()
    model(IDS)
    assert calls == [3]


@pytest.mark.parametrize("place", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_see_every_layer(model, place):
    seen = []
    register = getattr(every_module, f"register_module_{place}")
    handle = register(lambda m, *_: seen.append(m) if isinstance(m, Layer) else None)
    try:
        model(IDS)
    finally:
        handle.remove()
    assert seen == layers(model)


def test_a_replaced_forward_is_called(model):
    layer, seen = layers(model)[1], []
    forward = layer.forward
    layer.forward = lambda *args, **named: seen.append(1) or forward(*args, **named)
    model(IDS)
    assert seen == [1]


def test_hidden_states_are_there_when_asked_for(model):
    last = model(IDS)[0]
    states = model(IDS, output_hidden_states=True).hidden_states
    assert len(states) == len(layers(model)) + 1
    assert torch.equal(states[-1], last)
    assert torch.equal(model(IDS)[0], last)


def test_gradients_reach_the_inputs(model):
    states = model.embeddings(IDS)
    with torch.enable_grad():
        states.requires_grad_()
        model(inputs_embeds=states)[0].sum().backward()
    assert states.grad is not None


def test_what_changes_is_seen(model, calls):
    before = model(IDS)[0]
    part = layers(model)[1].ffn.down
    part.bias.add_(1)
    changed = model(IDS)[0]
    assert not torch.equal(changed, before)
    part.bias = part.bias - 1.5
    assert not torch.equal(model(IDS)[0], changed)
    assert torch.equal(model(IDS)[0], in_a_loop(model, input_ids=IDS))
    calls.clear()
    layers(model)[0].ffn = Skip()
    assert torch.equal(model(IDS)[0], in_a_loop(model, input_ids=IDS))
    assert calls == []


def test_layers_that_are_taken_out_are_not_run(model):
    whole = model(IDS)[0]
    del model.encoder.layer[1]
    assert not torch.equal(model(IDS)[0], whole)
    assert torch.equal(model(IDS)[0], in_a_loop(model, input_ids=IDS))


def test_copies_and_saved_models_run_at_once(model, calls, tmp_path):
    expected = model(IDS)[0]
    save(model, tmp_path / "saved")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        load(tmp_path / "saved"),
    ):
        calls.clear()
        assert torch.equal(other(IDS)[0], expected)
        assert calls == [3]
        assert isinstance(other.encoder, type(tiny_model("bert").encoder))


def test_what_a_layer_refuses_a_stack_refuses(model):
    with pytest.raises(OperandError, match="encoder_hidden_states"):
        model.encoder(model.embeddings(IDS), None, torch.zeros(3, 9, 32))
    with pytest.raises(OperandError, match="strange=True"):
        model.encoder(model.embeddings(IDS), None, strange=True)


def test_a_forced_backend_runs(model):
    with use_backend("reference"):
        y = model(IDS)[0]
        assert torch.equal(y, in_a_loop(model, input_ids=IDS))
    assert not torch.equal(y, model(IDS)[0])


def test_under_autocast_it_computes_in_its_own_dtype(model, calls):
    expected = model(IDS)[0]
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = model.encoder(model.embeddings(IDS))[0]
    assert torch.equal(y, expected)
    assert calls == []


class Plain(nn.Module):
    def forward(self, states, mask=None, **more):
        for layer in self.layers:
            states = layer(states, mask, **more)
        return (states,)


class Counted(nn.Module):
    def forward(self, states, mask=None):
        for _, layer in enumerate(self.layers):
            states = layer(states, mask, flag=mask)
        return states


class Numbered(nn.Module):
    def forward(self, states, masks):
        for i, layer in enumerate(self.layers):
            states = layer(states, masks[i])
        return states


class Collecting(nn.Module):
    def forward(self, states):
        every = ()
        for layer in self.layers:
            every += (states,)
            states = layer(states)
        return states, every


class Summing(nn.Module):
    def forward(self, states):
        total = 0
        for layer in self.layers:
            states = layer(states)
            total = total + states
        return total


class WithOthers(nn.Module):
    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        for other in self.others:
            states = other(states) + states
        return states


class Keeping(nn.Module):
    def forward(self, states):
        first = states
        for layer in self.layers:
            first = layer(states)
        return first


class Stepping(nn.Module):
    def forward(self, states, more):
        for layer in self.layers:
            states = layer(states, next(more))
        return states


class Looking(nn.Module):
    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return states, layer


class Twice(nn.Module):
    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return self.layers[0](states)


class Telling(nn.Module):
    def forward(self, states):
        for layer in self.layers:
            states = layer(states, self)
        return states


class Repeating(nn.Module):
    def forward(self, states):
        while states.sum() < 9:
            for layer in self.layers:
                states = layer(states)
        return states


class PartOfThem(nn.Module):
    def forward(self, states):
        for layer in self.layers[:2]:
            states = layer(states)
        return states


def test_a_plain_loop_is_read_from_the_code():
    assert plain_loop(Plain) == plain_loop(Counted) == "layers"


@pytest.mark.parametrize(
    "stack",
    [
        Numbered,
        Collecting,
        Summing,
        WithOthers,
        Keeping,
        Stepping,
        Looking,
        Twice,
        Telling,
        Repeating,
        PartOfThem,
    ],
)
def test_any_other_loop_is_left_alone(stack):
    assert plain_loop(stack) is None
