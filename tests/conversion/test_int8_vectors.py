"""Vectors of a plan run in codes of 8 bits where that is faster, and come back from disk to the
bit."""

from __future__ import annotations

import pytest
import torch
from conversion.test_pattern_modules import model_worth_measuring
from support.models import Prefers, answer, relative

from secateurs import (
    NeuronMask,
    SparsityPlan,
    apply,
    convert,
    explain,
    export_dense,
    load,
    prune,
    save,
)
from secateurs.conversion.cost import FormPicker
from secateurs.conversion.modules import Int8Linear, Int8VectorLinear
from secateurs.formats import Int8VectorWeight, Int8Weight
from secateurs.ops._backends import cpu

FORM = "int8 vectors"


def planned(kind="bert", budget="patterns=0.5,vector=16"):
    model = model_worth_measuring(kind)
    return model, prune(model, method="magnitude", budget=budget)


def converted(model, plan, form=FORM):
    return convert(model, plan, precision="int8", costs=Prefers(form))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_stays_near_the_masked_model(kind, batch):
    model, plan = planned(kind)
    fast = converted(model, plan)
    used = [module for module in fast.modules() if isinstance(module, Int8VectorLinear)]
    assert len(used) >= 6
    # Codes and scales are the same as where zeros are multiplied.
    want, panels = answer(apply(model, plan), batch), converted(model, plan, "int8 panels")
    got, others = answer(fast, batch), answer(panels, batch)
    assert relative(got, want) < 1.1 * relative(others, want) < 0.05
    assert relative(got, others) < 0.1 * relative(others, want)
    report = {r.site: r for r in explain(fast)}["layers.0.query+key+value"]
    assert report.action == FORM
    assert "vectors of 16 outputs keep 0.50 of the inputs" in report.reason


def test_the_whole_layer_wins_where_it_is_faster(batch):
    model, plan = planned()
    fast = convert(model, plan, precision="int8", costs=Whole())
    assert not any(isinstance(module, Int8VectorLinear) for module in fast.modules())
    report = {r.site: r for r in explain(fast)}["layers.0.layer"]
    assert report.action == "one operation"
    assert "one operation 0.000 ms" in report.reason


class Whole(Prefers):
    """Vectors win alone, and layers as one operation."""

    def __init__(self) -> None:
        super().__init__(FORM)

    def times(self, name, forms, x, residual):
        whole = {form: float(form != "one operation") for form in forms}
        return whole if "one operation" in forms else super().times(name, forms, x, residual)


def test_a_reload_is_identical_to_the_bit(batch, tmp_path):
    model, plan = planned()
    fast = converted(model, plan)
    save(fast, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert any(isinstance(module, Int8VectorLinear) for module in again.modules())
    assert torch.equal(answer(again, batch), answer(fast, batch))


def test_a_dense_export_keeps_its_zeros(batch):
    model, plan = planned()
    fast = converted(model, plan)
    dense = export_dense(fast)
    for name, mask in plan.masks.items():
        layer, role = name.split(".")[1:]
        if role == "up":
            there = dense.encoder.layer[int(layer)].intermediate.dense.weight != 0
            assert not bool((there & ~mask.keep).any())
            assert int(there.sum()) > 0.9 * int(mask.keep.sum())
    assert relative(answer(dense, batch), answer(fast, batch)) < 0.03


@pytest.mark.parametrize("pattern", ["2:4", "library"])
def test_other_patterns_are_multiplied_whole_and_that_is_said(pattern, batch):
    model, plan = planned(budget=f"patterns=0.5,pattern={pattern}")
    fast = converted(model, plan)
    report = {r.site: r for r in explain(fast)}["layers.0.up"]
    assert report.action == "int8 panels"
    assert "zeros of this pattern are multiplied: codes are packed by vectors" in report.reason
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 0.03


def test_groups_that_slicing_tears_apart_run_dense_and_that_is_said(batch):
    model, plan = planned()
    uneven = NeuronMask(torch.rand(256, generator=torch.Generator().manual_seed(0)) < 0.5)
    both = SparsityPlan({**plan.masks, "layers.1.neurons": uneven}, plan.model)
    fast = converted(model, both)
    report = {r.site: r for r in explain(fast)}["layers.1.up"]
    assert report.action == "int8 panels"
    assert "no one pattern is left to pack" in report.reason
    # Inputs may go anywhere: a group of outputs keeps as many of the others as it did.
    assert {r.site: r for r in explain(fast)}["layers.1.down"].action == FORM
    assert relative(answer(fast, batch), answer(apply(model, both), batch)) < 0.03


def test_small_weights_are_not_measured_and_large_ones_are():
    def forms(n, k):
        weight = torch.randn(n, k)
        keep = torch.rand(n // 16, k).lt(0.5).repeat_interleave(16, 0)
        vectors = Int8VectorLinear(Int8VectorWeight.pack(weight, keep, 16), None)
        return {"int8 panels": Int8Linear(Int8Weight.pack_dense(weight), None), FORM: vectors}

    picker = FormPicker(costs=Prefers(FORM), precision="int8")
    assert picker.pick("up", forms(32, 64), with_residual=False)[0] == "int8 panels"
    form, why = picker.pick("up", forms(256, 64), with_residual=True)
    assert form == FORM
    assert why == "int8 vectors 0.000 ms, int8 panels 1.000 ms at 256 tokens"


def test_attention_beside_vectors_in_codes_may_round(batch, monkeypatch):
    model, plan = planned("llama")
    fast, short, kernel = converted(model, plan), [], cpu.kernels.attention

    def watched(**args):
        short.append(args["short_products"])
        return kernel(**args)

    monkeypatch.setattr(cpu.kernels, "attention", watched)
    answer(fast, batch)
    assert short == [True] * len(short) != []
