"""passes: a walk through the layers gives what the model itself gives, without running it."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import RECORD_FAMILIES, TEXT_FAMILIES, tiny_batch, tiny_model

from secateurs import find_sites
from secateurs.architectures.calls import states_of
from secateurs.errors import DataError
from secateurs.reconstruction.layer_calls import passes


def layers_of(model):
    sites = find_sites(model)
    return sites, [sites.layer(model, index) for index in range(len(sites.layers))]


@torch.no_grad()
def states_in_front(model, layers, batch):
    """Of each layer, while the model runs as a whole."""
    found = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, named: found.append(states_of(args, named)), with_kwargs=True
        )
        for layer in layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", ["vit", *TEXT_FAMILIES, *RECORD_FAMILIES])
@torch.no_grad()
def test_a_walk_meets_the_states_that_the_model_has_in_front_of_each_layer(family):
    model = tiny_model(family)
    sites, layers = layers_of(model)
    batch = tiny_batch(model)
    if "use_cache" in type(model).forward.__code__.co_varnames:
        batch["use_cache"] = False
    runs, expected = passes(model, sites, batch), iter(states_in_front(model, layers, batch))
    assert len(runs) == (model.config.num_hidden_layers if family == "albert" else 1)
    for states, calls in runs:
        for layer, call in zip(layers, calls, strict=True):
            assert torch.equal(states, next(expected))
            states = call(layer, states)
    assert next(expected, None) is None


@torch.no_grad()
def test_only_the_first_layer_runs():
    model = tiny_model("bert")
    sites, layers = layers_of(model)
    ran = []
    for index, layer in enumerate(layers):
        layer.output.dense.register_forward_hook(lambda *_, index=index: ran.append(index))
    passes(model, sites, tiny_batch(model))
    assert ran == [0]


@torch.no_grad()
def test_the_layers_are_as_before_even_when_the_model_fails():
    model = tiny_model("bert")
    sites, layers = layers_of(model)

    def hooked(*args, **named):
        return type(layers[1]).forward(layers[1], *args, **named)

    layers[1].forward = hooked  # as accelerate leaves one
    batch = tiny_batch(model)
    before = model(**batch).last_hidden_state
    passes(model, sites, batch)
    with pytest.raises(DataError):
        passes(model, sites, {"input_ids": torch.tensor([[10**6]])})
    assert torch.equal(model(**batch).last_hidden_state, before)
    assert layers[1].forward is hooked
    assert "forward" not in layers[2].__dict__
