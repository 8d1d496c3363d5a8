"""Precision as an option of the search: what may be chosen, what is, and that rounding counts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.made_up_times import made_up_table
from support.models import answer, relative
from support.tiny_models import tiny_model
from test_compress import SHAPES, data

from secateurs import compress, explain, load, save
from secateurs.conversion import forms
from secateurs.conversion.report import conversion_of
from secateurs.errors import BudgetError, PlanError
from secateurs.search import LatencyTable, latency_table
from secateurs.search import search as module
from secateurs.search.precisions import Precision, asked_for

AS_FAST = {"float32": 1.0, "bfloat16": 1.0, "int8": 1.0}


@pytest.fixture
def bert():
    return tiny_model("bert").eval()


def machine(monkeypatch, isa="amx", **factors):
    """One whose instruction set is `isa`, and on which times of a precision are so much longer."""
    factors = {**AS_FAST, **factors}
    info = {"cpu": {**forms.ops.build_info()["cpu"], "isa": isa}}
    monkeypatch.setattr(forms.ops, "build_info", lambda: info)
    shape = module.find_sites(tiny_model("bert")).layers[0]

    def table(_, model, mix, *, precision, progress):
        return made_up_table(shape, factors[precision.name])

    def times(search, fast):
        conversion = conversion_of(fast)
        factor = factors[conversion.precision or str(fast.dtype).removeprefix("torch.")]
        ms = 6.0
        for index in range(3):
            keep = conversion.sites.keep(conversion.plan, index)
            stays = float(keep.attention or keep.ffn)
            ms += stays + int(keep.heads.sum()) + int(keep.neurons.sum()) / 32
        return module.Times(ms * factor, 0.0, 60.0)

    monkeypatch.setattr(LatencyTable, "measured", classmethod(table))
    monkeypatch.setattr(module.Search, "_times", times)


def found_in(bert, precision, budget="speedup=3"):
    return compress(bert, data(), budget, shapes=SHAPES, precision=precision, progress=False)


def test_a_precision_that_is_not_asked_for_is_never_chosen(bert, monkeypatch):
    machine(monkeypatch, int8=0.1, bfloat16=0.1)
    found = found_in(bert, None)
    assert found.precision == "float32"
    assert [trial.precision for trial in found.trials] == ["float32"]
    assert found.model.dtype is torch.float32
    assert conversion_of(found.model).precision is None
    assert found.plan.notes["why"] == "the model's own"


@pytest.mark.parametrize("fast", ["int8", "bfloat16"])
def test_the_precision_that_keeps_more_within_the_time_is_chosen(bert, monkeypatch, tmp_path, fast):
    machine(monkeypatch, **{fast: 0.4})
    found = found_in(bert, "auto")
    assert found.precision == fast
    distances = {trial.precision: trial.distance for trial in found.trials}
    assert distances.keys() == AS_FAST.keys()
    assert found.distance == distances[fast]
    assert all(found.distance <= other for other in distances.values() if other is not None)
    assert found.measured <= found.asked
    assert found.model.dtype is (torch.bfloat16 if fast == "bfloat16" else torch.float32)
    assert conversion_of(found.model).precision == ("int8" if fast == "int8" else None)
    (report,) = (row for row in explain(found.model) if row.site == "precision")
    assert report.action == fast
    assert all(name in report.reason for name in distances)
    assert bert.dtype is torch.float32
    save(found.model, tmp_path / "saved")
    notes = conversion_of(load(tmp_path / "saved")).plan.notes
    assert notes["precision"] == fast
    assert notes["why"] == report.reason
    assert notes["budget"] == "speedup=3"


def test_what_meets_the_time_with_nothing_removed_is_not_searched(bert, monkeypatch):
    machine(monkeypatch, int8=0.1, bfloat16=0.2)
    monkeypatch.setattr(LatencyTable, "measured", None)
    found = found_in(bert, "auto", "latency=8")
    trials = {trial.precision: trial for trial in found.trials}
    assert "with nothing removed it takes 30 ms" in trials["float32"].refusal
    assert not found.plan.masks
    assert found.precision == min(("bfloat16", "int8"), key=lambda name: trials[name].distance)
    assert found.distance > 0
    assert found.predicted == found.measured == found.dense <= 8
    assert [size.neurons for size in found.sizes] == [96] * 3
    assert found_in(bert, None, "latency=30").distance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("bfloat16", "why"), [(0.6, "at a first look"), (0.9, "1.8 times")])
def test_a_precision_that_is_far_behind_is_not_searched(bert, monkeypatch, bfloat16, why):
    """The fastest as a whole is tried first; what would lose nearly all its layers is given up, and
    what is much slower is not even measured."""
    machine(monkeypatch, int8=0.5, bfloat16=bfloat16)
    monkeypatch.setattr(module, "_BEHIND", 1.0)
    tables, measured = [], LatencyTable.measured
    monkeypatch.setattr(
        LatencyTable,
        "measured",
        lambda model, mix, **named: (
            tables.append(named["precision"].name) or measured(model, mix, **named)
        ),
    )
    tried, recover = [], module.refit
    monkeypatch.setattr(
        module,
        "refit",
        lambda model, plan, **rest: tried.append(plan) or recover(model, plan, **rest),
    )
    found = found_in(bert, "auto", "latency=8")
    trials = {trial.precision: trial for trial in found.trials}
    assert found.precision == "int8"
    assert found.plan.masks
    assert trials["float32"].refusal == "as a whole it takes 2 times as long as int8"
    assert why in trials["bfloat16"].refusal
    assert tables == (["int8", "bfloat16"] if bfloat16 == 0.6 else ["int8"])
    # Of bfloat16 one choice by each method, of int8 six and the result.
    assert len(tried) == 7 + 2 * (bfloat16 == 0.6)


def test_the_nearest_of_all_that_is_searched_is_taken(bert, monkeypatch):
    """Both lose the same units; the one that rounds, here badly, is tried first, for it is faster
    as a whole."""
    machine(monkeypatch, int8=0.795, float32=0.8, bfloat16=3.0)
    converted = Precision.converted

    def badly(precision, *args):
        fast = converted(precision, *args)
        if precision.codes:
            fast.embeddings.LayerNorm.weight.data[::2] *= 1.2
        return fast

    monkeypatch.setattr(Precision, "converted", badly)
    found = found_in(bert, "auto", "latency=20")
    distances = {trial.precision: trial.distance for trial in found.trials}
    assert distances["float32"] < distances["int8"]
    assert distances["bfloat16"] is None
    assert found.precision == "float32"


def test_what_rounding_loses_is_part_of_the_judgement(bert, monkeypatch):
    """Where nothing need go, only rounding differs."""
    machine(monkeypatch)
    found = found_in(bert, "auto", "latency=40")
    assert not found.plan.masks
    assert found.precision == "float32"
    distances = {trial.precision: trial.distance for trial in found.trials}
    assert distances["float32"] < min(distances["int8"], distances["bfloat16"])


def test_one_precision_may_be_named(bert, monkeypatch):
    machine(monkeypatch)
    found = found_in(bert, "bfloat16")
    assert found.precision == "bfloat16"
    assert found.recovered.dtype is torch.float32
    batch = data(1)[0]
    masked = copy.deepcopy(found.recovered).bfloat16()
    assert relative(answer(found.model, batch).float(), answer(masked, batch).float()) > 0
    assert found.plan.notes["why"] == "asked for"


def test_what_the_machine_has_no_products_for_is_left_out_and_told(bert, monkeypatch):
    machine(monkeypatch, isa="avx2", int8=0.1, bfloat16=0.1)
    found = found_in(bert, "auto")
    assert found.precision == "float32"
    refusals = {trial.precision: trial.refusal for trial in found.trials if trial.refusal}
    assert refusals == {
        "bfloat16": "avx2 has no products of bfloat16",
        "int8": "avx2 has no products of bytes",
    }
    assert "int8 is left out: avx2 has no products of bytes" in found.plan.notes["why"]


def test_a_precision_in_which_nothing_runs_is_left_out(monkeypatch):
    machine(monkeypatch, float64=1.0)
    found = found_in(tiny_model("bert").eval().double(), "auto")
    assert found.precision in ("float64", "bfloat16")
    (trial,) = (trial for trial in found.trials if trial.precision == "int8")
    assert "float64" in trial.refusal


def test_a_time_out_of_reach_in_all_names_what_the_fastest_reaches(bert, monkeypatch):
    machine(monkeypatch, int8=0.5)
    with pytest.raises(BudgetError, match="at least 3 ms"):
        found_in(bert, "auto", "latency=2")
    assert found_in(bert, "auto", "latency=5").precision == "int8"


def test_a_model_of_images_takes_no_bfloat16():
    vit = tiny_model("vit").eval()
    with pytest.raises(PlanError, match="takes numbers"):
        asked_for(vit, "bfloat16")
    tried, left_out = asked_for(vit, "auto")
    assert "bfloat16" not in [precision.name for precision in tried]
    assert "takes numbers" in left_out["bfloat16"]


def test_a_model_in_bfloat16_already_is_not_offered_it_twice(bert, monkeypatch):
    machine(monkeypatch)
    tried, left_out = asked_for(bert.bfloat16(), "auto")
    assert [precision.name for precision in tried] == ["bfloat16", "int8"]
    assert not left_out
    assert asked_for(bert, "bfloat16")[0] == [tried[0]]


def test_a_table_of_another_dtype_leaves_the_model_as_it_was(bert, monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(latency_table, "_OFF", math.inf)  # whatever else the machine does
    before = copy.deepcopy(bert.state_dict())
    (precision,), _ = asked_for(bert, "bfloat16")
    LatencyTable.measured(bert, {(1, 8): 1.0}, precision=precision, seconds=0.0, progress=False)
    assert all(
        torch.equal(before[name], value) and value.dtype is before[name].dtype
        for name, value in bert.state_dict().items()
    )
