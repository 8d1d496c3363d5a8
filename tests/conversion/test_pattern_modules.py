"""Patterns of a plan end in `pattern_linear`, and compute what the masked model computes."""

from __future__ import annotations

import pytest
import torch
from support.models import Prefers, answer, relative
from support.tiny_models import tiny_model
from torch.nn import functional as F

from secateurs import HeadMask, NeuronMask, SparsityPlan, apply, convert, explain, prune
from secateurs.conversion import forms
from secateurs.conversion.modules import DenseLinear, SemiStructuredLinear
from secateurs.conversion.modules.pattern_linear import PatternLinear, pack
from secateurs.errors import FormatError
from secateurs.plan import PatternMask
from secateurs.plan.weight_patterns import Library, TwoFour, VectorNM

BUDGETS = ("patterns=0.5,vector=16", "patterns=0.5,pattern=2:4", "patterns=0.5,pattern=library")


@pytest.fixture
def kernels(monkeypatch):
    """The reference stands in for a kernel."""
    monkeypatch.setattr(PatternLinear, "refusal", lambda self: None)


def model_worth_measuring(kind: str = "bert"):
    return tiny_model(kind, hidden_size=128, intermediate_size=256)


@pytest.mark.parametrize("vector", [1, 16])
def test_vectors_and_single_outputs_there_and_back(vector):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    keep = (VectorNM(2, 4, vector) if vector > 1 else TwoFour()).keep(weight)
    module = PatternLinear(pack(weight, keep, (vector, 1)), None)
    assert torch.equal(module.dense(), weight * keep)
    assert (module.library is None) == (vector > 1)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_module_computes_the_masked_product(activation):
    random = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(24, 32, generator=random), torch.randn(24, generator=random)
    x, multiplier, residual = (torch.randn(5, n, generator=random) for n in (32, 24, 24))
    keep = Library.select(weight, (4, 4), 8, 16).keep(weight)
    module = PatternLinear(pack(weight, keep, (4, 4)), bias, activation)
    y = F.linear(x, weight * keep, bias)
    y = F.gelu(y) if activation == "gelu" else y
    assert relative(module(x, multiplier, residual), y * multiplier + residual) < 1e-5


def test_masks_without_a_pattern_are_refused():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(2))
    keep = weight > 0
    for block in ((4, 1), (4, 4)):
        with pytest.raises(FormatError):
            pack(weight, keep, block)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_converted_equals_masked(budget, kind, batch):
    model = model_worth_measuring(kind)
    plan = prune(model, method="magnitude", budget=budget)
    fast = convert(model, plan, costs=Prefers("pattern"))
    used = [m for m in fast.modules() if isinstance(m, PatternLinear)]
    assert len(used) >= 6
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 1e-5
    reports = {r.site: r for r in explain(fast)}
    block = {"vector=16": "16x1", "2:4": "1x1", "library": "4x4"}
    form = f"pattern {next(b for word, b in block.items() if word in budget)} at 0.50"
    assert reports["layers.0.output"].action == form
    if "library" in budget:  # q, k and v have a library each
        assert "no one pattern is left" in reports["layers.0.query+key+value"].reason
    else:
        assert reports["layers.0.query+key+value"].action == form


@pytest.fixture
def cusparselt(monkeypatch):
    """Torch's own class for 2:4 on a CPU, its three calls of CUDA replaced: what is packed is the
    weight as it is."""
    kind = torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    monkeypatch.setattr(kind, "_validate_device_dim_dtype_shape", lambda weight: None)
    monkeypatch.setattr(torch, "_cslt_compress", torch.clone)

    def product(packed, x, bias=None, transpose_result=False, **_):
        y = packed @ x if bias is None else packed @ x + bias[:, None]
        return y.T if transpose_result else y

    monkeypatch.setattr(torch, "_cslt_sparse_mm", product)
    monkeypatch.setattr(forms.ops, "sparse_tensor_cores", lambda device, shape: True)


@pytest.mark.usefixtures("kernels", "cusparselt")
def test_two_of_four_run_by_cusparselt_where_that_is_fastest(batch, tmp_path):
    from secateurs import load, save

    model = model_worth_measuring().to(torch.bfloat16)
    plan = prune(model, method="magnitude", budget="patterns=0.5,pattern=2:4")
    fast = convert(model, plan, costs=Prefers("cuSPARSELt"))
    used = [m for m in fast.modules() if isinstance(m, SemiStructuredLinear)]
    assert len(used) >= 6
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 2e-2
    assert {r.action for r in explain(fast) if r.site == "layers.0.up"} == {"cuSPARSELt"}
    ours = convert(model, plan, costs=Prefers("torch"))
    dense = [m.dense() for m in ours.modules() if isinstance(m, DenseLinear)]
    assert all(map(torch.equal, [m.dense() for m in used], dense))
    save(fast, tmp_path / "saved")
    assert torch.equal(answer(load(tmp_path / "saved"), batch), answer(fast, batch))


@pytest.mark.usefixtures("kernels", "cusparselt")
def test_patterns_that_cusparselt_does_not_take_run_otherwise(monkeypatch):
    model = model_worth_measuring().to(torch.bfloat16)
    vectors = prune(model, method="magnitude", budget="patterns=0.5,vector=16")
    costs = Prefers("cuSPARSELt")
    assert "cuSPARSELt" not in {r.action for r in explain(convert(model, vectors, costs=costs))}

    keep = torch.arange(128) % 4 != 1
    three = SparsityPlan({"layers.0.up": PatternMask(keep.expand(256, 128).clone(), (1, 1))})
    assert "cuSPARSELt" not in {r.action for r in explain(convert(model, three, costs=costs))}

    def refuse(weight):
        raise RuntimeError("cuSPARSELt not supported on your machine.\nmore")

    monkeypatch.setattr(torch, "_cslt_compress", refuse)
    fours = prune(model, method="magnitude", budget="patterns=0.5,pattern=2:4")
    report = {r.site: r for r in explain(convert(model, fours, costs=costs))}["layers.0.up"]
    assert report.action != "cuSPARSELt"
    assert (
        "cuSPARSELt does not take it (cuSPARSELt not supported on your machine.)" in report.reason
    )


@pytest.mark.usefixtures("kernels")
def test_why_a_form_is_missing_is_told_once():
    """Two forms want one pattern in queries, keys and values."""
    model = model_worth_measuring()
    plan = prune(model, method="magnitude", budget="patterns=0.5,vector=16")
    eights = prune(model, method="magnitude", budget="patterns=0.5,vector=8").masks
    mixed = SparsityPlan({**plan.masks, "layers.0.key": eights["layers.0.key"]}, plan.model)
    fast = convert(model, mixed, costs=Prefers("pattern"))
    reason = {r.site: r for r in explain(fast)}["layers.0.query+key+value"].reason
    assert reason.count("expected one kind of pattern in query, key, value") == 1


@pytest.mark.usefixtures("kernels")
def test_patterns_survive_slicing_along_their_groups_and_else_stay_dense(batch):
    model = model_worth_measuring()
    plan = prune(model, method="magnitude", budget="patterns=0.5,vector=16")
    heads = HeadMask(torch.tensor([True, False, True, True]))
    uneven = NeuronMask(torch.rand(256, generator=torch.Generator().manual_seed(0)) < 0.5)
    masks = {**plan.masks, "layers.0.heads": heads, "layers.1.neurons": uneven}
    both = SparsityPlan(masks, plan.model)
    fast = convert(model, both, costs=Prefers("pattern"))
    assert relative(answer(fast, batch), answer(apply(model, both), batch)) < 1e-5
    reports = {r.site: r for r in explain(fast)}
    assert reports["layers.0.query+key+value"].action == "pattern 16x1 at 0.50"
    assert reports["layers.1.up"].action != "pattern 16x1 at 0.50"
    assert "no one pattern is left" in reports["layers.1.up"].reason


@pytest.mark.usefixtures("kernels")
def test_a_saved_pattern_model_answers_alike(batch, tmp_path):
    from secateurs import load, save

    model = model_worth_measuring()
    plan = prune(model, method="magnitude", budget="patterns=0.5,vector=16")
    fast = convert(model, plan, costs=Prefers("pattern"))
    save(fast, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert any(isinstance(m, PatternLinear) for m in again.modules())
    assert torch.equal(answer(again, batch), answer(fast, batch))


def test_where_no_kernel_runs_it_says_so(batch):
    from secateurs import use_backend

    model = model_worth_measuring()
    plan = prune(model, method="magnitude", budget="patterns=0.5,vector=16")
    with use_backend("reference"):
        fast = convert(model, plan)
    report = {r.site: r for r in explain(fast)}["layers.0.up"]
    assert report.action == "torch"
    assert "no kernel for pattern 16x1 at 0.50" in report.reason
    assert "reference is forced" in report.reason
