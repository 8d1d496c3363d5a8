from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import BlockSparseWeight, SparsityPlan, convert, explain
from secateurs.conversion.cost import CostTable, FormPicker
from secateurs.conversion.modules import DenseLinear, PackedLinear
from secateurs.errors import PlanError

CPU = torch.device("cpu")


def forms(n: int = 256, k: int = 128, density: float = 0.25) -> dict[str, torch.nn.Module]:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(n // 32, k // 32).bool()
    keep.view(-1)[: round(density * keep.numel())] = True
    return {
        "torch": DenseLinear(weight, None),
        "dense panels": PackedLinear(BlockSparseWeight.pack_dense(weight), None),
        "block-sparse": PackedLinear(BlockSparseWeight.pack(weight, keep, (32, 32)), None),
    }


class Fixed(CostTable):
    """A table with given times."""

    def __init__(self, **times: float) -> None:
        super().__init__(CPU, None)
        self._given = {name.replace("_", " "): ms for name, ms in times.items()}

    def times(self, name, forms, x, residual):
        return {form: self._given.get(form, 2.0) for form in forms}


def test_the_fastest_form_is_picked_and_the_reason_told():
    picker = FormPicker(tokens=8, costs=Fixed(torch=1.0, dense_panels=3.0))
    form, why = picker.pick("layers.0.up", forms(), with_residual=False)
    assert form == "torch"
    assert why == "torch 1.000 ms, block-sparse 2.000 ms, dense panels 3.000 ms at 8 tokens"


def test_a_form_fixed_before_is_kept_without_measuring():
    picker = FormPicker(costs=Fixed(torch=1.0), fixed={"layers.0.up": "block-sparse"})
    assert picker.pick("layers.0.up", forms(), with_residual=False)[0] == "block-sparse"
    assert picker.pick("layers.1.up", forms(), with_residual=False)[0] == "torch"


@pytest.mark.parametrize(("density", "form"), [(0.25, "block-sparse"), (1.0, "dense panels")])
def test_small_weights_go_by_rule(density, form):
    picker = FormPicker(costs=Fixed(torch=0.0))
    assert picker.pick("s", forms(64, 64, density), with_residual=False)[0] == form


def test_times_are_kept_for_the_next_process(tmp_path):
    x = torch.randn(4, 128)
    first = CostTable(CPU, tmp_path).times("call", forms(), x, torch.zeros(4, 256))
    assert first.keys() == forms().keys()
    assert all(ms > 0 for ms in first.values())
    again = CostTable(CPU, tmp_path)
    assert again.times("call", forms(), x, None) == first
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]


def test_a_damaged_table_is_measured_again(tmp_path):
    CostTable(CPU, tmp_path).times("call", forms(), torch.randn(4, 128), None)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert CostTable(CPU, tmp_path).times("call", forms(), torch.randn(4, 128), None)


def test_a_directory_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert CostTable(CPU, tmp_path / "file").times("call", forms(), torch.randn(4, 128), None)


def test_convert_measures_weights_that_are_large_enough(tmp_path):
    model = tiny_model("bert", hidden_size=128, intermediate_size=256)
    fast = convert(model, SparsityPlan(), tokens=16, costs=CostTable(CPU, tmp_path))
    reports = {r.site: r for r in explain(fast)}
    assert "ms at 16 tokens" in reports["layers.0.up"].reason
    assert reports["layers.0.up"].action in ("torch", "dense panels")


def test_tokens_must_be_positive():
    with pytest.raises(PlanError, match="at least one token"):
        convert(tiny_model("bert"), SparsityPlan(), tokens=0)
