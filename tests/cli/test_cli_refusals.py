"""What the command refuses, in one sentence, leaving nothing behind."""

from __future__ import annotations

import json

import pytest
from cli.conftest import WORDS, prune, run, saved
from support.tiny_models import tiny_model

from secateurs.cli import main as cli


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--budget", "heads=1.5", "--method", "random"], "between 0 and 1, got 1.5"),
        (["--budget", "heads=13", "--method", "random"], "between 0 and 1, got 13"),
        (["--budget", "tails=0.5", "--method", "random"], "'tails=0.5'"),
        (["--budget", "heads=0.5"], "expected --text, --data or --images, which method gradient"),
        (
            ["--budget", "heads=0.5", "--method", "random", "--distill", "3"],
            "which --distill needs",
        ),
        (["--budget", "heads=0.5", "--method", "random", "--option", "no=1"], "got 'no'"),
        (["--budget", "heads=0.5", "--text", "missing.txt"], "readable UTF-8 file"),
        (["--budget", "blocks=0.5,block=48", "--method", "random"], "block 48 does not divide"),
        (["--budget", "blocks=0.5", "--text", "t"], "the budget names blocks"),
        (["--budget", "heads=0.5,heads=0.2", "--method", "random"], "expected heads once"),
        (
            ["--budget", "heads=0.5", "--method", "dsp"],
            "expected the command prune-task, in which dsp trains",
        ),
        (
            ["--budget", "heads=0.9", "--method", "random", "--option", "min_heads=1"],
            "a budget that leaves 1 heads in each layer",
        ),
        (["--budget", "heads=0.5", "--option", "rounds=2.5"], "expected rounds to be a whole"),
        (["--budget", "heads=0.5", "--option", "rounds=0"], "at least one round"),
        (
            ["--budget", "heads=0.5", "--option", "rounds=1", "--option", "rounds=2"],
            "expected each --option once, got rounds twice",
        ),
        (
            ["--budget", "heads=0.5", "--method", "seven_pre", "--option", "signed=maybe"],
            "the budget names heads|expected signed to be True or False, got 'maybe'",
        ),
        (["--budget", "heads=0.5", "--method", "random", "--lr", "1"], "--lr only with --distill"),
        (["--budget", "heads=0.5", "--method", "random", "--batch-size", "2"], "--batch-size only"),
        (["--budget", "heads=0.5", "--method", "random", "--no-refit"], "--no-refit only with"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    folder, tmp_path, capsys, arguments, complaint
):
    out = tmp_path / "out"
    assert run("prune", "--model", folder, "--out", out, *arguments) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert any(words in error for words in complaint.split("|"))
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_can_be_refused_is_refused_before_the_model_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("secateurs.storage.model_folders.open_model", lambda _: pytest.fail("read"))
    common = ["--method", "random", "--budget", "heads=0.5"]
    for wrong in (
        ["--budget", "heads=2"],
        ["--option", "rounds=2"],
        ["--method", "gradient"],
        ["--method", "dsp"],
        ["--method", "gradient", "--budget", "weights=0.5", "--text", "t"],
        ["--out", folder],
        ["--out", "/dev/null/out"],
        ["--out", "x" * 3000],
        ["--json", tmp_path],
        ["--text", tmp_path / "missing"],
    ):
        arguments = ["prune", "--model", folder, "--out", tmp_path / "out", *common, *wrong]
        assert run(*arguments) == cli.BAD_INPUT, wrong


def test_texts_that_the_tokenizer_cannot_read_are_refused(folder, tmp_path, text, capsys):
    out = tmp_path / "out"
    tiny_model("bert").save_pretrained(tmp_path / "bare")
    assert prune(tmp_path / "bare", out, "--text", text) == cli.BAD_INPUT
    assert "expected a tokenizer in" in capsys.readouterr().err.splitlines()[-1]
    text.write_text("alte Haeuser stehen am Fluss\nein anderer Satz darueber hier")
    assert prune(folder, out, "--text", text) == cli.BAD_INPUT
    assert "got 10 unknown tokens of 10" in capsys.readouterr().err
    saved(tmp_path / "lone", tiny_model("llama"))
    text.write_text(" ".join(WORDS))
    assert prune(tmp_path / "lone", out, "--text", text) == cli.BAD_INPUT
    assert "a token to pad with" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a", "text_pair": 3}, "a string as text_pair"),
        ({"text": "a", "label": "good"}, "a number as label"),
        ({"text": "a", "label": float("nan")}, "a number as label"),
        ({"text": "a", "label": 10**30}, "a number as label"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(folder, tmp_path, capsys, row, words):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row))
    assert prune(folder, tmp_path / "out", "--data", data) == cli.BAD_INPUT
    assert words in capsys.readouterr().err
    data.write_text("[" * 100_000)
    assert prune(folder, tmp_path / "out", "--data", data) == cli.BAD_INPUT


def test_a_model_that_writes_is_shown_what_it_should_write(folder, tmp_path, text, capsys):
    out, data = tmp_path / "out", tmp_path / "data.jsonl"
    writer = saved(tmp_path / "t5", tiny_model("whole t5"), pad_token="[PAD]", eos_token="</s>")
    assert prune(writer, out, "--text", text) == cli.BAD_INPUT
    assert "expected examples with text and target" in capsys.readouterr().err
    rows = [{"text": " ".join(WORDS[i : i + 9]), "target": WORDS[i]} for i in range(9)]
    data.write_text("\n".join(map(json.dumps, rows)))
    assert prune(folder, out, "--data", data) == cli.BAD_INPUT
    assert "with an encoder and a decoder that writes alone" in capsys.readouterr().err
    assert not out.exists()
    assert prune(writer, out, "--data", data) == cli.OK
    assert out.exists()


def test_models_that_do_not_answer_alike_are_not_measured(folder, tmp_path, capsys):
    other = tmp_path / "other"
    tiny_model("bert", hidden_size=32, num_attention_heads=2).save_pretrained(other)
    assert run("measure", folder, "--baseline", other, "--min-time", 0) == cli.BAD_INPUT
    assert "expected pruned to answer like its baseline" in capsys.readouterr().err


def test_folders_that_are_no_models_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    for path, complaint in (
        (tmp_path / "missing", "expected a directory"),
        (tmp_path / "empty", "expected a config.json"),
        (tmp_path / "strange", "got 'NoSuchModel'"),
    ):
        assert run("inspect", path) == cli.BAD_INPUT
        assert complaint in capsys.readouterr().err


def test_a_family_we_do_not_know_is_refused(tmp_path, capsys):
    from transformers import LongformerConfig, LongformerModel

    tiny = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LongformerModel(LongformerConfig(**tiny)).save_pretrained(tmp_path / "longformer")
    assert run("inspect", tmp_path / "longformer") == cli.BAD_INPUT
    assert "got 'longformer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_hidden_layers": 0}, "an empty list"), ({"intermediate_size": 0}, "none in layer 0")],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_with_an_empty_layer_is_refused(tmp_path, capsys, changes, words):
    tiny_model("bert", **changes).save_pretrained(tmp_path / "empty")
    capsys.readouterr()
    out = tmp_path / "out"
    assert prune(tmp_path / "empty", out, "--method", "magnitude") == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_out_folder_in_use_is_refused(folder, capsys):
    assert prune(folder, folder, "--method", "random") == cli.BAD_INPUT
    assert "new or empty directory" in capsys.readouterr().err


def test_json_to_nowhere_is_refused_before_the_work(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--method", "random", "--json", tmp_path / "missing" / "out.json"]
    assert prune(folder, out, *options) == cli.BAD_INPUT
    assert "existing folder" in capsys.readouterr().err
    assert not out.exists()
