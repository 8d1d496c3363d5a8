"""`frontier`: models, a table and a picture for several speeds, with dense peers beside them."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest

from secateurs import load
from secateurs.cli import dense_peers, pictures
from secateurs.cli import main as cli
from secateurs.data.sentence_pairs import read_pairs
from secateurs.data.tasks import find_task
from secateurs.errors import BackendError
from secateurs.measurement.peers import against_stock
from secateurs.measurement.similarity import mean_embeddings, rank_correlation
from secateurs.storage.model_folders import open_classifier, open_model, open_tokenizer
from secateurs.training.task_recipe import TaskData, evaluate

pytestmark = pytest.mark.usefixtures("made_up_times")


@pytest.fixture(autouse=True)
def without_peers(monkeypatch):
    """None is installed, unless a test says so."""
    monkeypatch.setattr(dense_peers, "installed", lambda: [])


def run(*words) -> int:
    return cli.main([*map(str, words), "--no-progress", "--batch-size", "8"])


def test_a_frontier_is_a_model_for_each_speed_a_table_and_a_picture(folder, text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "frontier"
    arguments = ("--model", folder, "--text", text, "--out", out)
    assert run("frontier", *arguments, "--speedups", 4, 2.5, 50) == 0
    told = json.loads((out / "frontier.json").read_text())
    rows = told["results"]
    assert told["peers"] == []
    assert [row["target"] for row in rows] == [2.5, 4.0]
    assert all(row["speedup"] >= row["target"] for row in rows)
    assert (out / "frontier.png").stat().st_size
    load(out / "speedup-4")
    assert "50 times as fast is left out" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["own", "int8"])
def test_the_whole_model_is_drawn_where_it_is_exact(folder, text, tmp_path, monkeypatch, precision):
    drawn = []
    monkeypatch.setattr(pictures, "frontier", lambda _, __, points, *rest: drawn.extend(points))
    arguments = ("--model", folder, "--text", text, "--out", tmp_path / "frontier")
    assert run("frontier", *arguments, "--speedups", 2.5, "--precision", precision) == 0
    names = [name for name, *_ in drawn]
    whole = ["converted, whole"] if precision == "own" else []
    assert names == ["transformers", *whole, "2.5x"]


def test_points_in_one_place_share_a_label():
    told = []
    axes = SimpleNamespace(
        plot=lambda *_, **__: None,
        annotate=lambda name, place, *_, **__: told.append((name, place)),
        axvline=lambda *_, **__: None,
        set=lambda **_: None,
        margins=lambda _: None,
    )
    points = [("3x", 4.07, 0.9993), ("transformers", 1.0, 1.0), ("4x", 4.0701, 0.99931)]
    pictures._speed_against_quality(axes, points, pictures.COSINE)
    assert told == [("3x, 4x", (4.07, 0.9993)), ("transformers", (1.0, 1.0))]


def test_a_frontier_without_a_speed_in_reach_is_refused(folder, text, tmp_path, capsys):
    out = tmp_path / "frontier"
    arguments = ("--model", folder, "--text", text, "--out", out)
    assert run("frontier", *arguments, "--speedups", 50) == 2
    assert "none that is" in capsys.readouterr().err


@pytest.fixture
def measured_peers(monkeypatch) -> list:
    """Peers as `frontier` has them measured: one that is slow, its int8, one that raises."""
    asked = []

    def figures(peer, model, mix, fitted, judged):
        asked.append((peer, type(model).__name__, mix, len(fitted), len(judged)))
        if peer.label == "onnxruntime":
            raise BackendError("expected onnxruntime to run the model, got no operator")
        return against_stock.PeerFigures(40.0, 0.5, 60.0, 0.75 if peer.precision else 1.0)

    monkeypatch.setattr(against_stock, "figures_of_peer", figures)
    names = ["compiled", "openvino", "openvino-int8", "onnxruntime"]
    monkeypatch.setattr(dense_peers, "installed", lambda: names)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return asked


def test_a_frontier_shows_the_dense_peers_that_are_installed(
    folder, text, tmp_path, capsys, monkeypatch, measured_peers
):
    drawn, out = [], tmp_path / "frontier"
    monkeypatch.setattr(pictures, "frontier", lambda *arguments: drawn.append(arguments[4]))
    words = ("--model", folder, "--text", text, "--out", out, "--speedups", 2.5)
    assert run("frontier", *words, "--shape", "1x8:3", "--shape", "4x8:1") == 0
    exact, rounded = json.loads((out / "frontier.json").read_text())["peers"]
    assert exact["peer"] == "openvino"
    assert (exact["ms"], exact["stock_ms"], exact["speedup"]) == (40.0, 60.0, 1.5)
    assert [row["cosine"] for row in (exact, rounded)] == [1.0, 0.75]
    assert [row["precision"] for row in (exact, rounded)] == ["float32", "int8"]
    assert drawn == [[("openvino", 1.5, 1.0), ("openvino-int8", 1.5, 0.75)]]
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()[1:4]] == [
        "-",
        *("openvino", "openvino-int8"),
    ]
    assert "the peer onnxruntime is left out: expected onnxruntime to run the model" in told.err
    peers, models, mixes, *_ = zip(*measured_peers, strict=True)
    assert [peer.precision for peer in peers] == [None, "int8", None]
    assert set(models) == {"BertModel"}
    assert mixes[0] == {(1, 8): 0.75, (4, 8): 0.25}


def test_a_peer_of_another_precision_has_no_score_of_a_task(
    classifier, glue, tmp_path, monkeypatch, measured_peers
):
    drawn, out = [], tmp_path / "frontier"
    monkeypatch.setattr(pictures, "frontier", lambda *arguments: drawn.append(arguments[2:]))
    words = ("--model", classifier, "--task", "sst2", "--data-dir", glue, "--out", out)
    assert run("frontier", *words, "--speedups", 2.5, "--peers", "openvino-int8", "openvino") == 0
    rounded, exact = json.loads((out / "frontier.json").read_text())["peers"]
    ((points, _, peers),) = drawn
    assert "accuracy" not in rounded
    assert exact["accuracy"] == points[0][2]
    assert peers == [("openvino", 1.5, exact["accuracy"])]


def test_a_frontier_has_no_peers_where_none_is_named(folder, text, tmp_path, measured_peers):
    pytest.importorskip("matplotlib")
    out = tmp_path / "frontier"
    words = ("--model", folder, "--text", text, "--out", out, "--speedups", 2.5)
    assert run("frontier", *words, "--peers") == 0
    assert measured_peers == []


def test_a_peer_that_is_not_installed_is_refused_with_its_pip_line(
    folder, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "frontier"
    words = ("--model", folder, "--text", text, "--out", out)
    assert run("frontier", *words, "--peers", "openvino-int8") == 2
    error = capsys.readouterr().err
    assert "openvino and nncf for the peer openvino-int8" in error
    assert "pip install openvino nncf" in error
    assert not out.exists()


def test_a_frontier_of_a_task_tells_its_score(classifier, glue, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "frontier"
    words = ("--model", classifier, "--task", "sst2", "--data-dir", glue, "--out", out)
    assert run("frontier", *words, "--speedups", 2.5) == 0
    (row,) = json.loads((out / "frontier.json").read_text())["results"]
    data = TaskData.read(find_task("sst2"), open_tokenizer(classifier), glue)
    assert row["accuracy"] == evaluate(load(out / "speedup-2.5"), data)["accuracy"]
    dense = evaluate(open_classifier(classifier, 2), data)["accuracy"]
    assert f"not pruned: accuracy {dense:.4f}" in capsys.readouterr().out


def test_a_picture_shows_the_score_of_a_task(classifier, glue, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        pictures, "frontier", lambda path, title, points, quality, peers: drawn.update(
            {"points": points, "quality": quality}
        )
    )  # fmt: skip
    words = ("--model", classifier, "--task", "sst2", "--data-dir", glue, "--precision", "own")
    assert run("frontier", *words, "--out", tmp_path / "frontier", "--speedups", 2.5) == 0
    (row,) = json.loads((tmp_path / "frontier" / "frontier.json").read_text())["results"]
    data = TaskData.read(find_task("sst2"), open_tokenizer(classifier), glue)
    dense = evaluate(open_classifier(classifier, 2), data)["accuracy"]
    assert drawn["quality"] == "sst2, accuracy"
    assert [value for _, _, value in drawn["points"]] == [dense, dense, row["accuracy"]]


def test_a_frontier_is_judged_by_pairs(folder, text, pairs, tmp_path, capsys, monkeypatch):
    named = []
    monkeypatch.setattr(pictures, "frontier", lambda *arguments: named.append(arguments[3]))
    out = tmp_path / "frontier"
    words = ("--model", folder, "--text", text, "--pairs", pairs, "--out", out, "--speedups", 5)
    assert run("frontier", *words) == 0
    (row,) = json.loads((out / "frontier.json").read_text())["results"]
    ranked = {
        where: rank_correlation(
            mean_embeddings(open_model(where), open_tokenizer(folder), 128), read_pairs(pairs)
        )
        for where in (folder, out / "speedup-5")
    }
    dense, fast = ranked.values()
    assert row["spearman"] == fast != dense
    assert f"not pruned: spearman {dense:.4f}" in capsys.readouterr().out
    assert named == ["pairs.jsonl, spearman"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "one of --text, --data, --images and --task"),
        (["--task", "sst2", "--text", "text.txt"], "one of --text, --data, --images and --task"),
        (["--task", "sst2", "--pairs", "p"], "--pairs only with --text or --data"),
        (["--text", "text.txt", "--data-dir", "."], "--data-dir only with --task"),
        (["--task", "sst2", "--data-dir", "glue"], "expected a model with a head for sst2"),
    ],
)
def test_a_frontier_needs_one_source_of_data(
    folder, glue, tmp_path, monkeypatch, capsys, words, told
):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "frontier"
    assert run("frontier", "--model", folder, "--out", out, *words) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
