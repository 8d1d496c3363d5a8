"""`prune --speedup` and `prune --latency`: what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.word_folders import WORDS

from secateurs import convert, load, prune, save
from secateurs.cli import main as cli
from secateurs.conversion import builder
from secateurs.data.tasks import find_task
from secateurs.search import search as module
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import TaskData, evaluate

pytestmark = pytest.mark.usefixtures("made_up_times")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join((WORDS * 2)[i : i + 5]) for i in range(13)) * 4)
    return path


def run(*words) -> int:
    return cli.main([*map(str, words), "--no-progress", "--batch-size", "8"])


def test_a_speed_is_met_saved_and_told(folder, text, tmp_path, capsys):
    out, told = tmp_path / "fast", tmp_path / "told.json"
    arguments = ("--model", folder, "--text", text, "--out", out, "--json", told)
    assert run("prune", *arguments, "--speedup", 3, "--shape", "1x8:0.7", "--shape", "4x8:0.3") == 0
    result = json.loads(told.read_text())
    assert result["speedup"] >= 3
    assert result["budget"] == "speedup=3"
    assert result["density"]["parameters"] < 1
    assert "measured ms" in capsys.readouterr().out
    ids = torch.tensor([[2, 3, 4, 5]])
    assert load(out)(input_ids=ids).last_hidden_state.isfinite().all()
    assert (out / "tokenizer.json").is_file()


def test_a_latency_is_read_with_its_unit(folder, text, tmp_path):
    out, told = tmp_path / "fast", tmp_path / "told.json"
    arguments = ("--model", folder, "--text", text, "--out", out, "--json", told)
    assert run("prune", *arguments, "--latency", "21ms") == 0
    assert json.loads(told.read_text())["ms"] <= 21


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "one of --budget, --speedup and --latency"),
        (["--speedup", "3", "--latency", "4ms"], "one of --budget, --speedup and --latency"),
        (["--speedup", "3", "--budget", "heads=0.5"], "one of --budget, --speedup and --latency"),
        (["--speedup", "3", "--distill", "5"], "--effort long"),
        (["--speedup", "3", "--no-refit"], "--no-refit only with --budget"),
        (["--speedup", "3", "--allocator", "global"], "--allocator only with --budget"),
        (["--speedup", "3", "--option", "damping=0.1"], "--option only with --budget"),
        (["--budget", "heads=0.5", "--shape", "1x8"], "--shape only with --speedup or --latency"),
        (["--budget", "heads=0.5", "--effort", "long"], "--effort only with --speedup"),
        (["--budget", "heads=0.5", "--force"], "--force only with --speedup"),
        (["--speedup", "11"], "at least 6 ms"),
        (["--speedup", "3", "--method", "dsp"], "Session"),
        (["--budget", "heads=0.5", "--precision", "auto"], "--precision auto only with --speedup"),
        (["--budget", "heads=0.5", "--precision", "bfloat16"], "bfloat16 only with --speedup"),
    ],
)
def test_what_does_not_fit_together_is_refused(folder, text, tmp_path, capsys, words, told):
    out = tmp_path / "fast"
    assert run("prune", "--model", folder, "--text", text, "--out", out, *words) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("words", [["--speedup", "1"], ["--latency", "fast"], ["--shape", "8"]])
def test_words_that_cannot_be_read_are_refused(folder, text, tmp_path, capsys, words):
    with pytest.raises(SystemExit):
        run("prune", "--model", folder, "--text", text, "--out", tmp_path / "fast", *words)
    assert "expected" in capsys.readouterr().err


def test_a_time_needs_data(folder, tmp_path, capsys):
    out = tmp_path / "fast"
    assert cli.main(["prune", "--model", str(folder), "--out", str(out), "--speedup", "3"]) == 2
    assert "--text, --data or --images" in capsys.readouterr().err


@pytest.mark.parametrize("target", [("--speedup", 3), ("--budget", "heads=0.5")])
def test_linears_run_in_codes_of_8_bits_where_that_is_asked_for(
    folder, text, tmp_path, target, monkeypatch
):
    rounded, decide = [], builder.decide
    monkeypatch.setattr(builder, "decide", lambda *a: rounded.append(decide(*a)) or rounded[-1])
    out = tmp_path / "fast"
    arguments = ("--model", folder, "--text", text, "--out", out, "--precision", "int8")
    assert run("prune", *arguments, *target) == 0
    kinds = {type(module).__name__ for module in load(out).modules()}
    assert "Int8Linear" in kinds
    assert not kinds & {"PackedLinear", "DenseLinear"}
    assert len(rounded) == 1  # by the text


def test_a_dense_folder_is_measured_in_codes_of_8_bits(folder, text, tmp_path, capsys):
    def measure(path, *words):
        usual = ["measure", path, "--baseline", folder, "--precision", "int8", "--shapes", "1x4"]
        return cli.main([*map(str, usual), "--min-time", "0", "--no-progress", *words])

    told = tmp_path / "told.json"
    assert measure(folder, "--text", str(text), "--json", str(told)) == 0
    assert 0.99 < json.loads(told.read_text())["cosine"]["mean"] < 1 - 1e-9
    pruning = ("--model", folder, "--text", text, "--budget", "heads=0.5")
    assert run("prune", *pruning, "--out", tmp_path / "coded", "--precision", "int8") == 0
    assert measure(tmp_path / "coded") == 0
    assert run("prune", *pruning, "--out", tmp_path / "other") == 0
    assert measure(tmp_path / "other") == 2
    assert "or one saved in int8" in capsys.readouterr().err


def test_measuring_tells_the_scores_of_a_task(classifier, glue, tmp_path):
    model, told = open_classifier(classifier, 2), tmp_path / "told.json"
    plan = prune(model, method="random", budget="heads=0.5,neurons=0.5")
    save(convert(model, plan), tmp_path / "pruned")
    words = ["measure", tmp_path / "pruned", "--baseline", classifier, "--shapes", "1x4",
             "--min-time", "0", "--task", "sst2", "--data-dir", glue, "--json", told]  # fmt: skip
    assert cli.main([*map(str, words), "--no-progress"]) == 0
    data = TaskData.read(find_task("sst2"), open_tokenizer(classifier), glue)
    scores = json.loads(told.read_text())["scores"]
    assert scores == {"dense": evaluate(model, data), "pruned": evaluate(load(words[1]), data)}
    assert scores["dense"] != scores["pruned"]


@pytest.mark.parametrize("command", ["prune", "frontier"])
def test_a_time_is_met_in_any_precision_unless_its_own_is_asked_for(
    folder, text, tmp_path, monkeypatch, command
):
    asked, precisions = [], module.asked_for

    def recorded(model, precision):
        asked.append(precision)
        return precisions(model, precision)

    monkeypatch.setattr(module, "asked_for", recorded)
    target = ("--speedup", 2) if command == "prune" else ("--speedups", 2, "--peers")
    for number, words in enumerate([(), ("--precision", "own"), ("--precision", "bfloat16")]):
        arguments = ("--model", folder, "--text", text, "--out", tmp_path / str(number))
        assert run(command, *arguments, *target, *words) == 0
    assert asked == ["auto", None, "bfloat16"]


def test_the_precision_that_was_chosen_is_told_with_its_reason(folder, text, tmp_path, capsys):
    out, told = tmp_path / "fast", tmp_path / "told.json"
    arguments = ("--model", folder, "--text", text, "--out", out, "--json", told)
    assert run("prune", *arguments, "--latency", "31ms") == 0
    result = json.loads(told.read_text())
    assert result["precision"] == "float32"  # nothing need go, and rounding would only lose
    precisions = [trial["precision"] for trial in result["precisions"]]
    assert sorted(precisions) == ["bfloat16", "float32", "int8"]
    assert "computes in float32, the nearest to the dense model" in capsys.readouterr().out
    assert cli.main(["inspect", str(out)]) == 0
    assert "budget latency=31" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "text"),
        (" \n\n \n", "text"),
    ],
)
def test_a_text_of_nothing_is_refused(folder, tmp_path, capsys, content, words):
    text, out = tmp_path / "nothing.txt", tmp_path / "fast"
    text.write_text(content)
    assert run("prune", "--model", folder, "--text", text, "--out", out, "--speedup", 3) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_text_of_one_sentence_again_and_again_is_fitted(folder, tmp_path):
    """All tokens are alike: the ridge holds what they do not determine."""
    text, out = tmp_path / "constant.txt", tmp_path / "fast"
    text.write_text("the old house stood by a river.\n" * 24)
    assert run("prune", "--model", folder, "--text", text, "--out", out, "--speedup", 3) == 0
    assert all(parameter.isfinite().all() for parameter in load(out).parameters())


def test_activations_that_are_not_finite_are_refused_and_nothing_is_written(
    folder, text, tmp_path, capsys
):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[2:] = float("nan")
    model.save_pretrained(folder)
    out = tmp_path / "fast"
    for words in (["--speedup", 3], ["--budget", "heads=0.5", "--method", "magnitude"]):
        assert run("prune", "--model", folder, "--text", text, "--out", out, *words) == 2
        assert "finite" in capsys.readouterr().err
        assert not out.exists()


def test_a_machine_that_is_too_noisy_is_told_and_force_goes_on(
    folder, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(module.Search, "_times", lambda *_: module.Times(19.8, 15.0, 60.0))
    out = tmp_path / "fast"
    arguments = ("prune", "--model", folder, "--text", text, "--out", out, "--speedup", 3)
    assert run(*arguments) == 2
    assert "19.8 ms with a spread of 15 ms" in capsys.readouterr().err
    assert not out.exists()
    assert run(*arguments, "--force") == 0
