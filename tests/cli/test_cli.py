from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cli.conftest import WORDS, prune, run, saved
from support.models import saved_files
from support.tiny_models import tiny_model

import secateurs
from secateurs.cli import main as cli
from secateurs.cli import timed_pruning
from secateurs.cli.commands import COMMANDS, export
from secateurs.integrations.runtimes import RUNTIMES
from secateurs.search.precisions import ASKED
from secateurs.search.search import EFFORTS
from secateurs.storage.model_folders import open_model, open_tokenizer

COMMAND = ["prune", "--model", "a", "--out", "b", "--budget", "heads=0.5"]


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


@pytest.mark.parametrize("kind", ["pruned", "stock"])
def test_a_profile_needs_no_baseline(folder, tmp_path, capsys, kind):
    model, told = folder, tmp_path / "told.json"
    if kind == "pruned":
        model = tmp_path / "pruned"
        assert prune(folder, model, "--method", "magnitude") == 0
    options = ["--profile", "--shapes", "1x4", "--min-time", "0"]
    assert run("measure", model, *options, "--json", told) == 0
    rows = json.loads(told.read_text())["profile"]
    parts = {row["part"]: row["ms"] for row in rows}
    inside = {"attention", "ffn"} if kind == "pruned" else {"attention", "intermediate", "output"}
    assert {"layers", "embeddings", "whole", *(f"layers: {part}" for part in inside)} <= {*parts}
    assert all(parts[name] > 0 for name in parts if name != "all else")
    assert "Each part is timed in calls of its own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "expected --baseline, --profile or both, got neither"),
        (["--profile", "--text", "t"], "expected --text only with --baseline"),
        (["--profile", "--task", "sst2"], "expected --task only with --baseline"),
    ],
)
def test_what_only_a_baseline_gives_is_refused_without_one(folder, capsys, options, words):
    assert run("measure", folder, *options) == cli.BAD_INPUT
    assert words in capsys.readouterr().err


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
    assert needs["dsp"] == "gradients, training, labels"
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


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_can_be_read(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    example = COMMANDS[name].EXAMPLE
    assert told.endswith(f"example:\n  {example}\n")
    program, *words = shlex.split(example)
    assert program == "secateurs"
    assert cli.parser().parse_args(words).command == name


def test_choices_that_are_written_down_without_torch_are_those_of_the_library():
    assert tuple(EFFORTS) == timed_pruning.EFFORTS
    assert set(timed_pruning.PRECISIONS) == set(ASKED)
    assert tuple(RUNTIMES) == export.TARGETS


def test_help_tells_every_exit_status(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out.partition("exit status:")[2]
    for status in (cli.OK, cli.FAILED, cli.BAD_INPUT, cli.INTERRUPTED):
        assert re.search(rf"^  {status} ", told, re.MULTILINE)


def test_a_shell_that_asks_what_comes_next_is_answered(monkeypatch):
    asked = []
    answers = SimpleNamespace(autocomplete=lambda parser: asked.append(parser.prog))
    monkeypatch.setitem(sys.modules, "argcomplete", answers)
    assert cli.main(["methods"]) == 0
    assert asked == []
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    assert cli.main(["methods"]) == 0
    assert asked == ["secateurs"]
    monkeypatch.setitem(sys.modules, "argcomplete", None)  # not installed
    assert cli.main(["methods"]) == 0


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
        ["inspect", "a", "--picture", "kept.txt"],
        ["report", "a"],
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
