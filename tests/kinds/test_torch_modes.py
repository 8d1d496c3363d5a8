"""Modes of torch around a model: inference mode, autocast, layers of half precision."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.heads import (
    BATCH,
    CLASSES,
    HEADS,
    distilled,
    headed,
    pruned,
)
from support.models import relative
from support.tiny_models import tiny_model
from torch import nn

import secateurs
from secateurs import ModuleMask, Session, SparsityPlan
from secateurs.errors import (
    ArgumentError,
)


@pytest.mark.parametrize("place", ["made", "called", "without gradients"])
def test_inference_mode_around_a_model_or_a_call_changes_nothing(place):
    want_model = headed(transformers.BertForSequenceClassification)
    want = {m: pruned(want_model, CLASSES, m) for m in ("gradient", "seven_pre", "smp")}
    around = torch.no_grad() if place == "without gradients" else torch.inference_mode()
    with around:
        model = headed(transformers.BertForSequenceClassification)
        batch = {name: value.clone() for name, value in CLASSES.items()}
        inside = place != "made"
        found = [pruned(model, batch, m) for m in want] if inside else []
        students = [distilled(model, batch)] if inside else []
    found += [pruned(model, batch, method) for method in want]
    students.append(distilled(model, batch))
    assert found == [*want.values()] * (len(found) // 3)
    for student in students:
        student(**CLASSES).loss.backward()
    fast = secateurs.convert(model, HEADS)
    torch.testing.assert_close(fast(**CLASSES)[1], secateurs.apply(model, HEADS)(**CLASSES)[1])


def test_what_inference_mode_forbids_is_refused():
    with torch.inference_mode():
        model = headed(transformers.BertForSequenceClassification)
    with pytest.raises(ArgumentError, match="expected a model that can be trained"):
        Session(model, "dsp", budget="heads=0.5")
    with pytest.raises(ArgumentError, match="changed in place"):
        secateurs.apply(model, HEADS, inplace=True)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda m: pruned(m, CLASSES, "magnitude"), id="magnitude"),
        pytest.param(lambda m: pruned(m, CLASSES), id="gradient"),
        pytest.param(distilled, id="distill"),
        pytest.param(lambda m: Session(m, "dsp", budget="heads=0.5"), id="session"),
        pytest.param(lambda m: secateurs.apply(m, HEADS), id="apply"),
        pytest.param(lambda m: secateurs.convert(m, HEADS), id="convert"),
        pytest.param(lambda m: secateurs.measure(m, BATCH, min_time=0), id="measure"),
    ],
)
def test_models_without_their_weights_are_refused(use):
    with torch.device("meta"):
        model = headed(transformers.BertForSequenceClassification)
    with pytest.raises(ArgumentError, match="on the meta device"):
        use(model)


MIXED = SparsityPlan({**HEADS.masks, "layers.1.ffn": ModuleMask(torch.tensor(False))})


def in_dtypes(kind: str, form: str) -> nn.Module:
    model = tiny_model(kind)
    if form == "float32":
        return model
    if form == "a bfloat16 ffn":
        for layer in range(3):
            for role in ("up", "down"):
                secateurs.find_sites(model).linear(model, layer, role).module.bfloat16()
        return model
    model = model.bfloat16()
    for module in model.modules() if form == "float32 norms" else ():
        if "norm" in type(module).__name__.lower():
            module.float()
    return model


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "float32 norms", "a bfloat16 ffn"])
@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "llama"])
def test_converted_layers_run_under_autocast_as_stock_ones_do(kind, form, recorded):
    model = in_dtypes(kind, form)
    fast, masked = secateurs.convert(model, MIXED), secateurs.apply(model, MIXED)
    with torch.set_grad_enabled(recorded), torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = fast(**BATCH)[0], masked(**BATCH)[0]
    assert got.dtype == want.dtype
    assert relative(got, want) < 3e-2


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "distilbert"])
def test_layers_of_several_dtypes_run_as_stock_ones_do(kind, recorded):
    model = in_dtypes(kind, "float32 norms")
    fast, masked = secateurs.convert(model, MIXED), secateurs.apply(model, MIXED)
    with torch.set_grad_enabled(recorded):
        got, want = fast(**BATCH)[0], masked(**BATCH)[0]
    assert got.dtype == want.dtype
    assert relative(got, want) < 3e-2


@torch.no_grad()
def test_a_half_precision_layer_may_lose_everything():
    model = tiny_model("bert").half()
    plan = SparsityPlan({"layers.1.layer": ModuleMask(torch.tensor(False))})
    fast = secateurs.convert(model, plan)
    got, want = fast(**BATCH)[0], secateurs.apply(model, plan)(**BATCH)[0]
    told = {report.site: report.reason for report in secateurs.explain(fast)}
    assert told["layers.1.layer"] == "no kernel computes it in torch.float16"
    assert got.dtype == torch.float16
    assert relative(got, want) < 5e-3
