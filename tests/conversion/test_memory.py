"""What a conversion holds at once, and what it does when it is stopped there."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from support.live_tensors import watch
from support.models import answer
from support.tiny_models import tiny_model
from torch import nn
from transformers import BertConfig, BertModel

from secateurs import HeadMask, SparsityPlan, convert, explain
from secateurs.conversion import builder, rebuilding
from secateurs.conversion.inherited import record_of
from secateurs.errors import ConvertedError, FamilyError

FAMILIES = ("bert", "llama", "gpt2", "mbart", "modernbert", "vit")
BUILT = "secateurs.conversion.rebuilding.fastest"
LAYERS = 8


def deep_model() -> nn.Module:
    """A BERT that is nearly all layers."""
    config = BertConfig(
        vocab_size=64,
        max_position_embeddings=32,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
    )
    torch.manual_seed(0)
    return BertModel(config, add_pooling_layer=False).eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(12).view(2, 6)}


def addresses(model: nn.Module) -> set[int]:
    held = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in held if tensor.numel()}


def a_head_less() -> SparsityPlan:
    mask = HeadMask(torch.tensor([True, False, True, True]))
    return SparsityPlan({"layers.1.heads": mask})


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_place_or_not_the_models_are_the_same_and_share_nothing(kind):
    model = tiny_model(kind).eval()
    before = {name: held.clone() for name, held in model.state_dict().items()}
    beside, within = convert(model, SparsityPlan()), copy.deepcopy(model)
    assert not addresses(beside) & addresses(model)
    assert convert(within, SparsityPlan(), inplace=True) is within
    assert explain(beside) == explain(within)
    made, made_within = beside.state_dict(), within.state_dict()
    assert made.keys() == made_within.keys()
    assert all(torch.equal(held, made_within[name]) for name, held in made.items())
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())


@pytest.mark.parametrize(("inplace", "most"), [(True, 1.5), (False, 2.5)])
def test_a_conversion_never_holds_another_model(inplace, most, monkeypatch):
    """In place that is the model, a portion on trial and a layer in all its forms; else both models
    and such a layer."""
    with watch() as seen:
        model = deep_model()
        size = seen.look()
        seen.returns_of(monkeypatch, BUILT)
        converted = convert(model, SparsityPlan(), inplace=inplace)
        assert record_of(converted) is not None
        assert seen.most < most * size
        del model
        assert seen.look() < 1.1 * size  # a model beside holds nothing of the first one


def test_a_refusal_of_the_last_layers_leaves_the_model(monkeypatch):
    model = deep_model()
    want, modules = answer(model, inputs()), list(model.modules())
    weight, seen = model.encoder.layer[LAYERS - 1].attention.self.value.weight, []
    prove = builder.prove

    def refuse_the_last(model, sites, evidence, precision, portion):
        seen.append(portion)
        if LAYERS - 1 in portion:
            raise FamilyError("the last")
        return prove(model, sites, evidence, precision, portion)

    monkeypatch.setattr(builder, "prove", refuse_the_last)
    with pytest.raises(FamilyError, match="the last"):
        convert(model, a_head_less(), inplace=True)
    assert list(itertools.chain(*seen)) == list(range(LAYERS))
    assert len(seen) > 2
    assert list(model.modules()) == modules
    assert model.encoder.layer[LAYERS - 1].attention.self.value.weight is weight
    assert record_of(model) is None
    assert torch.equal(answer(model, inputs()), want)


@pytest.mark.parametrize("number", range(LAYERS))
def test_each_layer_is_proven(number, monkeypatch):
    """A layer that computes something else is refused wherever it stands."""
    model = deep_model()
    want = answer(model, inputs())
    slice_layer = builder.slice_layer

    stock = list(model.encoder.layer)

    def wrong_there(layer, keep, *, shares):
        linears = slice_layer(layer, keep, shares=False)
        if layer is stock[number]:
            linears["down"].weight.mul_(2)
        return linears

    monkeypatch.setattr(builder, "slice_layer", wrong_there)
    with pytest.raises(FamilyError, match=rf"layer\.{number} does not compute"):
        convert(model, SparsityPlan(), inplace=True)
    assert torch.equal(answer(model, inputs()), want)


def test_a_model_whose_layers_are_half_gone_refuses_to_run(monkeypatch):
    model, fastest, calls = deep_model(), rebuilding.fastest, []

    def stopped(*args):
        calls.append(len(model.encoder.layer))
        # No layers in place, and more made than all trials make: the stock ones are being dropped.
        if len(calls) > 4 * LAYERS + 2:
            raise KeyboardInterrupt
        return fastest(*args)

    monkeypatch.setattr(rebuilding, "fastest", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert(model, SparsityPlan(), inplace=True)
    with pytest.raises(ConvertedError, match="interrupted"):
        model(**inputs())
