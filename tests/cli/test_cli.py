from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import saved_files
from support.tiny_models import tiny_model
from torch import nn

import secateurs
from secateurs.cli import main as cli
from secateurs.storage.model_folders import open_model, open_tokenizer

WORDS = "the old house stood by a river and nobody came there in winter".split()  # noqa: SIM905


COMMAND = ["prune", "--model", "a", "--out", "b", "--budget", "heads=0.5"]


def saved(path: Path, model: nn.Module, **special: str) -> Path:
    """A stock model with a word tokenizer, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS, "</s>"])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "dense", tiny_model("bert"), pad_token="[PAD]")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(WORDS[i : i + 5]) for i in range(9)))
    return path


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])


def prune(folder: Path, out: Path, *more: object) -> int:
    return run("prune", "--model", folder, "--out", out, "--budget", "heads=0.5,neurons=0.5", *more)


def test_prune_then_inspect_then_measure(folder, text, tmp_path, capsys):
    out = tmp_path / "pruned"
    assert prune(folder, out, "--text", text, "--json", tmp_path / "prune.json") == 0
    told = json.loads((tmp_path / "prune.json").read_text())
    assert told["density"]["heads"] == 0.5
    assert "saved to" in capsys.readouterr().out

    assert run("inspect", out, "--json", tmp_path / "inspect.json") == 0
    told = json.loads((tmp_path / "inspect.json").read_text())
    assert sum(layer["heads"] for layer in told["layers"]) == 6
    assert told["notes"]["method"] == "gradient"
    assert {"site", "action", "reason"} == set(told["decisions"][0])
    assert told["decisions"][0]["reason"] in capsys.readouterr().out

    options = ["--shapes", "1x4", "2x6", "--min-time", "0", "--text", text]
    assert (
        run("measure", out, "--baseline", folder, *options, "--json", tmp_path / "measure.json")
        == 0
    )
    told = json.loads((tmp_path / "measure.json").read_text())
    assert [(r["shape"], r["variant"]) for r in told["rows"]] == [
        ([1, 4], "dense"), ([1, 4], "pruned"), ([2, 6], "dense"), ([2, 6], "pruned"),
    ]  # fmt: skip
    assert 0 < told["cosine"]["mean"] < 1


def test_a_model_of_images_is_pruned_and_measured(tmp_path):
    dense, out, told = tmp_path / "dense", tmp_path / "pruned", tmp_path / "told.json"
    tiny_model("vit").save_pretrained(dense)
    assert prune(dense, out, "--method", "magnitude") == 0
    options = ["--shapes", "2x10", "--min-time", "0.01", "--json", told]
    assert run("measure", out, "--baseline", dense, *options) == 0
    assert [row["shape"] for row in json.loads(told.read_text())["rows"]] == [[2, 10]] * 2


def test_the_saved_model_is_what_the_library_makes(folder, tmp_path):
    assert prune(folder, tmp_path / "out", "--method", "magnitude") == 0
    dense = open_model(folder)
    plan = secateurs.prune(dense, method="magnitude", budget="heads=0.5,neurons=0.5")
    ids = torch.arange(2, 8)[None]
    with torch.no_grad():
        got = open_model(tmp_path / "out")(input_ids=ids).last_hidden_state
        want = secateurs.convert(dense, plan)(input_ids=ids).last_hidden_state
    assert torch.equal(got, want)


def test_prune_reads_json_lines_options_and_distils(folder, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": " ".join(WORDS[i:])}) for i in range(6)))
    out = tmp_path / "out"
    options = ["--data", data, "--option", "rounds=2", "--option", "normalize=none"]
    assert prune(folder, out, *options, "--no-refit", "--distill", 2, "--batch-size", 3) == 0
    notes = secateurs.SparsityPlan.load(saved_files(out)[1]).notes
    assert notes["options"] == {"rounds": 2, "normalize": "none"}
    weight = "encoder.layer.0.attention.output.dense.bias"
    from safetensors.torch import load_file

    weights = (folder / "model.safetensors", saved_files(out)[0])
    dense, pruned = (load_file(path)[weight] for path in weights)
    assert not torch.equal(dense, pruned)


@pytest.mark.parametrize("refits", [True, False])
def test_prune_refits_unless_told_not_to(folder, tmp_path, refits):
    from safetensors.torch import load_file

    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"text": " ".join(WORDS[i:])}) for i in range(6)))
    options = ["--data", data, "--method", "magnitude", *([] if refits else ["--no-refit"])]
    assert prune(folder, tmp_path / "out", *options) == 0
    name = "encoder.layer.0.output.dense.bias"
    files = (folder / "model.safetensors", saved_files(tmp_path / "out")[0])
    dense, pruned = (load_file(path)[name] for path in files)
    assert torch.equal(dense, pruned) is not refits


def test_prune_by_layerwise_admm_fits_the_weights_under_its_masks(folder, tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("\n".join(json.dumps({"text": " ".join(WORDS[i:])}) for i in range(6)))
    options = ["--method", "layerwise_admm", "--budget", "patterns=0.5,pattern=2:4"]
    assert run("prune", "--model", folder, "--out", out, "--data", data, *options) == 0
    dense, plan = open_model(folder), secateurs.SparsityPlan.load(saved_files(out)[1])
    stock = secateurs.export_dense(secateurs.load(out))
    old, new = (m.encoder.layer[0].intermediate.dense.weight for m in (dense, stock))
    keep = plan.masks["layers.0.up"].keep
    assert torch.equal(new != 0, keep)
    assert not torch.allclose(new, old * keep, rtol=0.01)


def test_inspect_of_a_stock_model_shows_everything_kept(folder, tmp_path):
    assert run("inspect", folder, "--json", tmp_path / "out.json") == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["family"] == "bert"
    assert set(told["density"].values()) == {1.0}
    assert told["decisions"] == []


def test_methods_are_those_of_the_table(tmp_path, capsys):
    assert run("methods", "--json", tmp_path / "out.json") == 0
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in rows] == list(secateurs.METHODS)
    needs = {row["name"]: row["needs"] for row in rows}
    assert (needs["random"], needs["gradient"]) == ("nothing", "gradients")
    assert "gradient" in capsys.readouterr().out


@pytest.mark.parametrize("method", secateurs.METHODS)
def test_methods_explains_every_option_of_one(tmp_path, capsys, method):
    told = tmp_path / "out.json"
    assert run("methods", method, "--json", told) == 0
    result, pruner = json.loads(told.read_text()), secateurs.METHODS[method].pruner
    rows = {row["name"]: row for row in result["options"]}
    parameters = {**inspect.signature(pruner).parameters}
    floors = [] if pruner.chooses else ["min_heads", "min_neurons"]
    assert [*rows] == [*parameters, *floors]
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert row["type"] in ("int", "float", "bool", "str", "str | Path")
        assert len(row["meaning"]) > 5, f"the docstring of {method} does not explain {name}"
        assert row["meaning"] in printed
        default = parameters[name].default if name in parameters else 0
        if isinstance(default, float):
            assert float(row["default"]) == pytest.approx(default, rel=1e-5)
        else:
            assert row["default"] == str(default).lower()


def test_what_methods_says_of_options_is_taken_by_prune(folder, tmp_path):
    """Every default, as a word of the command line."""
    run("methods", "magnitude", "--json", tmp_path / "told.json")
    rows = json.loads((tmp_path / "told.json").read_text())["options"]
    words = [f"--option={row['name']}={row['default']}" for row in rows]
    assert len(words) == 2
    assert prune(folder, tmp_path / "out", "--method", "magnitude", *words) == 0


def test_the_allocator_can_be_chosen(folder, tmp_path):
    for allocator, heads in (("per_layer", [2, 2, 2]), (None, None)):
        out = tmp_path / str(allocator)
        more = ["--allocator", allocator] if allocator else ["--option", "min_heads=1"]
        assert prune(folder, out, "--method", "random", "--seed", 2, *more) == 0
        masks = secateurs.SparsityPlan.load(saved_files(out)[1]).masks
        got = [int(masks[f"layers.{i}.heads"].keep.sum()) for i in range(3)]
        assert sum(got) == 6
        assert got == heads or (heads is None and min(got) >= 1 and got != [2, 2, 2])


def test_the_command_of_before_for_tasks_still_works_and_says_where_it_went(tmp_path, capsys):
    for words in (["--task", "sst3"], ["--task=sst3"]):
        assert cli.main([*COMMAND, *words, "--method", "dsp", "--out", str(tmp_path / "b")]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert "is now a command of its own, prune-task" in first
        assert second.startswith("secateurs prune-task: expected a task in")


def test_env_prints_what_env_report_says(tmp_path, capsys):
    assert run("env", "--json", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == secateurs.env_report()
    assert torch.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--budget", "heads=1.5", "--method", "random"], "between 0 and 1, got 1.5"),
        (["--budget", "heads=13", "--method", "random"], "between 0 and 1, got 13"),
        (["--budget", "tails=0.5", "--method", "random"], "'tails=0.5'"),
        (["--budget", "heads=0.5"], "expected --text or --data, which method gradient needs"),
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


@pytest.mark.parametrize("special", [{"eos_token": "</s>"}, {}], ids=["end", "neither"])
@pytest.mark.parametrize("kind", ["llama", "distilbert"])
def test_a_tokenizer_without_padding_pads(tmp_path, text, capsys, kind, special):
    """With what does not matter: the plan is that of a tokenizer with a token for it."""
    text.write_text(text.read_text() + "\nthe old house stood by a river and nobody came there")
    plans = []
    for name, more in (("lacks", special), ("has", {"pad_token": "[PAD]"})):
        dense = saved(tmp_path / f"dense-{name}", tiny_model(kind), unk_token="[UNK]", **more)
        assert prune(dense, tmp_path / name, "--text", text) == cli.OK
        plans.append(secateurs.SparsityPlan.load(saved_files(tmp_path / name)[1]))
    assert plans[0] == plans[1]
    tokenizer = open_tokenizer(tmp_path / "lacks")
    assert tokenizer.pad_token == special.get("eos_token", "[UNK]")
    assert "secateurs" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_texts_beyond_the_positions_are_cut_and_that_is_told_once(tmp_path, text, capsys, kind):
    sizes = {} if kind == "roberta" else {"max_position_embeddings": 62}
    dense = saved(tmp_path / "dense", tiny_model(kind, **sizes), pad_token="[PAD]")
    text.write_text("\n".join(" ".join(WORDS * 9) for _ in range(3)))
    assert prune(dense, tmp_path / "out", "--text", text) == cli.OK
    assert capsys.readouterr().err == (
        "secateurs prune: the model reads 62 tokens, longer texts are cut to them\n"
    )
    assert prune(dense, tmp_path / "short", "--text", text, "--max-length", 62) == cli.OK
    assert capsys.readouterr().err == ""
    shapes = ["--shapes", "1x4", "1x63", "--min-time", "0"]
    assert run("measure", tmp_path / "out", "--baseline", dense, *shapes) == cli.BAD_INPUT
    assert "shapes of at most 62 tokens, got 1x63" in capsys.readouterr().err


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
    from transformers import GPTNeoXConfig, GPTNeoXModel

    tiny = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    GPTNeoXModel(GPTNeoXConfig(**tiny)).save_pretrained(tmp_path / "neox")
    assert run("inspect", tmp_path / "neox") == cli.BAD_INPUT
    assert "got 'gpt_neox'" in capsys.readouterr().err


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


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(secateurs.SecateursError):
        run("inspect", tmp_path / "missing", "--debug")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prune"],
        ["nonsense"],
        ["prune", "--model", "a", "--out", "b", "--budget", "heads=0.5", "--method", "wishful"],
        ["measure", "a", "--baseline", "b", "--shapes", "0x3"],
        ["measure", "a", "--baseline", "b", "--shapes", "three"],
        ["measure", "a", "--baseline", "b", "--min-time", "nan"],
        ["measure", "a", "--baseline", "b", "--min-time", "-1"],
        [*COMMAND, "--lr", "nan"],
        [*COMMAND, "--lr", "-1"],
        [*COMMAND, "--seed", "-1"],
        [*COMMAND, "--batch-size", "9" * 5000],
        [*COMMAND, "--task", "sst2", "--text", "t"],
        [*COMMAND, "--text", "t", "--data", "t"],
        [*COMMAND, "--data-dir", "d"],
        [*COMMAND, "--allocator", "fair"],
        ["prune-task", *COMMAND[1:]],
        ["prune-task", *COMMAND[1:], "--task", "sst2", "--data", "t"],
        ["methods", "wishful"],
        ["prune", "--model", "a", "--out", "b", "--budget", "heads=0.5", "--option", "rounds"],
    ],
)
def test_command_lines_that_cannot_be_read_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(arguments)
    assert refused.value.code == 2
    assert "usage: secateurs" in capsys.readouterr().err


def test_the_command_exits_with_the_status_of_the_work(tmp_path):
    command = [sys.executable, "-m", "secateurs.cli.main"]
    good = subprocess.run([*command, "methods"], capture_output=True, text=True)
    bad = subprocess.run([*command, "inspect", tmp_path / "no"], capture_output=True, text=True)
    assert (good.returncode, bad.returncode) == (0, cli.BAD_INPUT)
    assert bad.stdout == ""
