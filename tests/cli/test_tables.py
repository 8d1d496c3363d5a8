from __future__ import annotations

import json

import pytest
import torch
from cli.conftest import run
from support.tiny_models import tiny_model

from secateurs import HeadMask, NeuronMask, PatternMask, SparsityPlan, find_sites
from secateurs.cli import pictures
from secateurs.cli.pictures import draw
from secateurs.cli.tables import layers_kept, speed_table, table, write_json
from secateurs.errors import DataError


def test_a_table_aligns_numbers_right_and_text_left():
    rows = [{"name": "a", "ms": 1.0}, {"name": "long", "ms": 123.456}]
    assert table(rows, {"name": "model", "ms": "ms:.1f"}).splitlines() == [
        "model     ms",
        "a        1.0",
        "long   123.5",
    ]


def test_absent_values_show_as_a_dash():
    rows = [{"speedup": None}, {}]
    assert table(rows, {"speedup": "speedup:.2f"}).splitlines()[1:] == ["      -", "      -"]


def test_a_speed_table_shows_shape_variant_and_ratio():
    row = {
        "shape": [8, 128], "variant": "converted", "backend": "cpu",
        "ms": 1.0, "ms_p20": 0.9, "ms_p80": 1.2, "speedup": 2.345,
    }  # fmt: skip
    line = speed_table([row]).splitlines()[1]
    assert line.split() == ["8x128", "converted", "cpu", "1.00", "0.90", "1.20", "2.35"]


def test_layers_kept_counts_both_sides():
    model = tiny_model("bert")
    plan = SparsityPlan(
        {
            "layers.0.heads": HeadMask(torch.tensor([True, False, True, False])),
            "layers.1.neurons": NeuronMask(torch.arange(96) < 10),
            "layers.2.up": PatternMask(torch.arange(4).repeat(96, 16) < 1, (1, 1)),
        }
    )
    first, second, third = layers_kept(find_sites(model), plan)
    whole, half = {"heads": 4, "heads_of": 4, "neurons": 96, "neurons_of": 96}, 4 * 64 * 64 / 2
    total = 4 * 64 * 64 + 2 * 64 * 96
    assert first == {**whole, "layer": 0, "heads": 2, "weights": 1 - half / total}
    assert second == {**whole, "layer": 1, "neurons": 10, "weights": 1 - 2 * 64 * 86 / total}
    assert third == {**whole, "layer": 2, "weights": 1 - 0.75 * 64 * 96 / total}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_json_to_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        write_json(tmp_path / "missing" / "report.json", {})


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    layers = [{"layer": 0, "heads": 1, "heads_of": 4, "neurons": 0, "neurons_of": 0}]
    path = tmp_path / "report.png"
    draw(path, "title", [("dense", 1.0, 1.0), ("converted", 2.0, 0.96)], layers)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="cannot write"):
        draw(tmp_path / "missing" / "report.png", "title", [("dense", 1.0, 1.0)], layers)


def test_dense_peers_have_a_mark_of_their_own(monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    pictures.frontier("f.png", "title", [("3x", 3.0, 0.9)], peers=[("openvino", 1.5, 1.0)])
    (axes,) = drawn[0].axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    marks = {tuple(point.get_xydata()[0]): point.get_marker() for point in points}
    assert marks == {(3.0, 0.9): "o", (1.5, 1.0): "s"}
    assert {text.get_text() for text in axes.texts} == {"3x", "openvino"}


def test_kept_parts_are_a_picture_of_their_own(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "kept.svg"
    assert run("inspect", folder, "--picture", path) == 0
    assert f"drawn in {path}" in capsys.readouterr().out
    assert "<svg" in path.read_text()
    for wrong in (tmp_path / "missing" / "kept.png", tmp_path / "a.png"):
        (tmp_path / "a.png").mkdir(exist_ok=True)
        assert run("inspect", folder, "--picture", wrong) == 2
        assert "expected --picture" in capsys.readouterr().err
