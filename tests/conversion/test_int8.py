"""convert(model, plan, precision="int8") computes what plain torch computes with weights and states
rounded to codes, says so, and comes back from disk to the bit."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from ops.attention_check import WITH_LONG_PRODUCTS
from safetensors.torch import load_file, save_file
from support.models import answer, relative, saved_files
from support.oracles import relative_error
from support.plans import PLANS
from support.tiny_models import tiny_model
from torch import nn

from secateurs import (
    BlockMask,
    Levels,
    SparsityPlan,
    apply,
    convert,
    explain,
    export_dense,
    load,
    save,
    use_backend,
)
from secateurs.conversion.modules import Int8Linear
from secateurs.errors import BackendError, CheckpointError, PlanError
from secateurs.ops._backends import cpu


class RoundedLinear(nn.Module):
    """A stock linear on codes, in torch's own operations and in float64."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = self.rounded(linear.weight.detach()), linear.bias

    @staticmethod
    def rounded(x):
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30).double() / 127
        return (x.double() / scale).round() * scale

    def forward(self, x):
        groups = [self.rounded(group) for group in x.split(64, dim=-1)]
        y = torch.cat(groups, -1) @ self.weight.T
        return (y if self.bias is None else y + self.bias.double()).to(x.dtype)


def rounded_model(model):
    """The stock model with every linear of its layers on codes."""
    model = copy.deepcopy(model)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    for module in list(layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, RoundedLinear(child))
    return model


def int8_linears(model):
    return [module for module in model.modules() if isinstance(module, Int8Linear)]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "vit"], indirect=True)
def test_computes_what_plain_torch_computes_on_codes(model, batch):
    """Behind the first layer: the last bit of a state decides now and then which of two codes is
    the nearer one, and layers add up what follows from that. Products of attention may be shorter
    where the instruction set has such."""
    fast = convert(model, SparsityPlan(), precision="int8")
    with torch.no_grad(), cpu.use_isa(WITH_LONG_PRODUCTS):
        got, exact, want = (
            m(**batch, output_hidden_states=True).hidden_states[1].double()
            for m in (fast, model, rounded_model(model))
        )
    mask = batch.get("attention_mask")
    seen = slice(None) if mask is None else mask.bool()
    rounding, difference = ((got - other)[seen].square().mean().sqrt() for other in (exact, want))
    assert float(rounding / exact.square().mean().sqrt()) > 1e-3
    assert float(difference / rounding) < 0.05


@pytest.mark.parametrize("family", ["bert", "llama"], indirect=True)
def test_shorter_products_of_attention_add_next_to_nothing(model, batch):
    fast, errors = convert(model, SparsityPlan(), precision="int8"), []
    want = answer(model, batch).double().numpy()
    for isa in (cpu.isas()[0], WITH_LONG_PRODUCTS):
        with cpu.use_isa(isa):
            errors.append(relative_error(answer(fast, batch), want))
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("family", ["llama", "marian"])
@pytest.mark.parametrize("precision", [None, "int8"])
def test_attention_beside_linears_in_codes_may_round(family, precision, batch, monkeypatch):
    """In the layers that run in parts, of one stack and of two."""
    fast = convert(tiny_model(family), SparsityPlan(), precision=precision)
    short, kernel = [], cpu.kernels.attention

    def watched(**args):
        short.append(args["short_products"])
        return kernel(**args)

    monkeypatch.setattr(cpu.kernels, "attention", watched)
    asked = {"decoder_input_ids": batch["input_ids"]} if family == "marian" else {}
    with torch.no_grad():
        fast(**batch, **asked)
    assert short == [precision == "int8"] * len(short) != []


@pytest.mark.parametrize("name", list(PLANS))
def test_every_plan_stays_near_the_masked_model(name, batch):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS[name])
    fast = convert(model, plan, precision="int8")
    want = answer(apply(model, plan), batch)
    assert relative(answer(fast, batch), want) < 0.03
    with use_backend("reference"):
        assert relative(answer(fast, batch), want) < 0.03


def wide_blocks():
    keep = torch.rand(64 // 32, 96 // 32, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[0], keep[1, 0] = torch.tensor([True, False, True]), True
    return SparsityPlan({"layers.1.down": BlockMask(keep, (32, 32))})


def test_blocks_that_are_not_kept_are_not_stored(batch):
    model, plan = tiny_model("bert"), wide_blocks()
    fast = convert(model, plan, precision="int8")
    report = {r.site: r for r in explain(fast)}["layers.1.down"]
    assert report.action == "int8 block-sparse"
    assert "of the 32x32 blocks are stored" in report.reason
    kept = int(plan.masks["layers.1.down"].keep.sum())
    assert kept in {len(linear.values) for linear in int8_linears(fast)}
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 0.03


def test_explain_tells_the_instruction_set_and_whether_it_has_products_of_bytes():
    model = tiny_model("bert")
    for isa in cpu.isas():
        with cpu.use_isa(isa):
            reports = explain(convert(model, SparsityPlan(), precision="int8"))
        told = {r.site: r for r in reports}["layers.0.up"]
        assert told.action == "int8 panels"
        assert f"codes of 8 bits on {isa}" in told.reason
        slow = isa in ("portable", "avx2", "avx512")
        assert ("no products of bytes" in told.reason) == slow
    assert "in int8: every layer's update is within" in reports[0].reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["empty", "uneven", "blocks", "no attention"])
def test_encoders_run_whole_as_in_parts(name, dtype, batch, monkeypatch):
    plan = SparsityPlan(PLANS[name])
    fast = convert(tiny_model("bert").to(dtype), plan, precision="int8")
    assert {r.action for r in explain(fast) if r.site.endswith(".layer")} == {"one operation"}
    calls, kernel = [], cpu.kernels.encoder_layers

    def watched(**args):
        calls.append(len(args["layers"]))
        return kernel(**args)

    monkeypatch.setattr(cpu.kernels, "encoder_layers", watched)
    got = answer(fast, batch)
    assert calls == [3]
    for layer in fast.encoder.layer:
        layer.whole = None
    # Its parts may take torch's own norm, of which the last bit decides between two codes.
    assert relative(answer(fast, batch).float(), got.float()) < 3e-3
    assert calls == [3]


@pytest.mark.parametrize("bits", [4, 8])
def test_levels_of_a_plan_run_as_they_are(bits, batch):
    model = tiny_model("bert")
    weight = model.get_submodule("encoder.layer.0.intermediate.dense").weight
    levels = Levels.fit(weight, bits)
    plan = SparsityPlan({}, levels={"layers.0.up": levels})
    fast = convert(model, plan, precision="int8")
    up = fast.get_submodule("encoder.layer.0").ffn.up
    assert torch.equal(up.dense(), levels.nearest(weight))
    assert bool((up.scales == levels.scale).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["empty", "uneven", "blocks", "no neurons in a layer", "wide"])
def test_reload_is_identical_to_the_bit(name, dtype, batch, tmp_path):
    model = tiny_model("bert").to(dtype)
    plan = wide_blocks() if name == "wide" else SparsityPlan(PLANS[name])
    fast = convert(model, plan, precision="int8")
    save(fast, tmp_path)
    again = load(tmp_path)
    assert torch.equal(answer(again, batch), answer(fast, batch))
    assert [r.action for r in explain(again)] == [r.action for r in explain(fast)[1:]]
    stored = load_file(saved_files(tmp_path)[0])
    layers = [t for n, t in stored.items() if ".layer." in n and n.endswith((".weight", ".values"))]
    assert {t.dtype for t in layers if t.dim() > 1 and t.numel()} == {torch.int8}
    dense = export_dense(fast)
    assert relative(answer(dense, batch).float(), answer(fast, batch).float()) < 0.03


def test_codes_take_a_quarter_of_the_bytes(tmp_path):
    model = tiny_model("bert")
    sizes = []
    for precision in (None, "int8"):
        save(convert(model, SparsityPlan(), precision=precision), tmp_path / str(precision))
        stored = load_file(saved_files(tmp_path / str(precision))[0])
        sizes.append(sum(t.nbytes for n, t in stored.items() if ".layer." in n and t.dim() > 1))
    assert 4 * sizes[1] == sizes[0]


def test_a_cast_keeps_codes_and_scales(batch):
    fast = convert(tiny_model("bert"), SparsityPlan(PLANS["uneven"]), precision="int8")
    held = [(linear.values.clone(), linear.scales.clone()) for linear in int8_linears(fast)]
    low = fast.to(torch.bfloat16)
    for linear, (values, scales) in zip(int8_linears(low), held, strict=True):
        assert torch.equal(linear.values, values)
        assert torch.equal(linear.scales, scales)
        assert linear.dtype == torch.bfloat16
    assert answer(low, batch).dtype == torch.bfloat16


def test_gradients_reach_the_inputs():
    fast = convert(tiny_model("bert"), SparsityPlan(), precision="int8")
    x = torch.randn(2, 5, 64, requires_grad=True)
    fast(inputs_embeds=x)[0].square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) > 0


@pytest.mark.parametrize("precision", ["int4", "fp32", ""])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(PlanError, match=f"expected precision None or int8, got '{precision}'"):
        convert(tiny_model("bert"), SparsityPlan(), precision=precision)


@pytest.mark.parametrize("inplace", [False, True])
def test_where_nothing_runs_codes_that_is_said_and_the_model_stays(inplace, batch):
    model = tiny_model("bert").half()
    with pytest.raises(BackendError, match=r"run query\+key\+value in int8, got .*takes float32"):
        convert(model, SparsityPlan(), precision="int8", inplace=inplace)
    assert not hasattr(model, "_conversion")
    assert torch.equal(answer(model, batch), answer(tiny_model("bert").half(), batch))


def test_backends_without_products_of_codes_say_so():
    linear = int8_linears(convert(tiny_model("bert"), SparsityPlan(), precision="int8"))[0]
    assert linear.refusal() is None
    for name in ("triton", "cuda"):
        with use_backend(name):
            assert f"{name}: it has no such kernel" in linear.refusal()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda t, n: t.pop(f"{n}.scales"), "scales, but it is missing"),
        (lambda t, n: t[f"{n}.scales"].neg_(), "float32 above 0"),
        (lambda t, n: t[f"{n}.scales"].mul_(torch.nan), "NaN or infinity"),
        (lambda t, n: t.update({f"{n}.scales": t[f"{n}.scales"][1:].clone()}), "scales as float32"),
        (lambda t, n: t[f"{n}.weight"].fill_(-128), "codes from -127 on"),
        (lambda t, n: t.update({f"{n}.weight": t[f"{n}.weight"].float()}), "weight as int8"),
    ],
)
def test_altered_codes_and_scales_are_refused(alter, message, tmp_path, monkeypatch):
    save(convert(tiny_model("bert"), SparsityPlan(), precision="int8"), tmp_path)
    path, _ = saved_files(tmp_path)
    tensors = load_file(path)
    alter(tensors, "encoder.layer.1.output.dense")
    save_file(tensors, path, metadata={"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text())["secateurs"]["sha256"]
    monkeypatch.setattr("secateurs.storage.checkpoint.sha256", lambda path: said[path.name])
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
