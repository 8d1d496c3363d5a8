"""A whole pruning run on a task, by the library and by the command."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import saved_files
from support.tiny_models import tiny_model
from support.training import dense_folder, sentences, write

import secateurs
from secateurs.cli import main as cli
from secateurs.cli.commands import prune_task
from secateurs.data.metrics import matthews
from secateurs.data.tasks import find_task
from secateurs.data.text import fit_tokenizer
from secateurs.errors import CheckpointError, DataError
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import (
    Settings,
    TaskData,
    evaluate,
    meta_task,
    prune_on_task,
    train,
)


@pytest.fixture
def model_folder(tmp_path) -> Path:
    return dense_folder(tmp_path / "dense")


def prune_parser() -> argparse.ArgumentParser:
    commands = next(action for action in cli.parser()._actions if action.choices)
    return commands.choices["prune-task"]


def test_the_metric_is_over_the_whole_split_not_a_mean_of_batches(model_folder, glue):
    task, tokenizer = find_task("cola"), open_tokenizer(model_folder)
    write(glue / "cola" / "train.jsonl", sentences(4))
    write(glue / "cola" / "validation.jsonl", sentences(23))
    data = TaskData.read(task, tokenizer, glue, 16)
    model = open_classifier(model_folder, 2)
    with torch.no_grad():  # so that both classes are predicted
        model.classifier.weight.mul_(20)
    predicted, wanted = [], []
    for example in data.validation:
        inputs = {k: torch.tensor([v]) for k, v in example.items() if k != "labels"}
        predicted.append(int(model(**inputs).logits.argmax()))
        wanted.append(example["labels"])
    want = matthews(np.array(predicted), np.array(wanted))
    assert 0 < sum(predicted) < 23
    for size in (1, 5, 64):
        assert evaluate(model, data, size)["matthews"] == pytest.approx(want)


def test_heads_are_made_kept_or_refused(model_folder, tmp_path):
    first, again = (
        open_classifier(model_folder, 3, seed=1),
        open_classifier(model_folder, 3, seed=1),
    )
    assert first.num_labels == 3
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    other = open_classifier(model_folder, 3, seed=2)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    first.save_pretrained(tmp_path / "three")
    kept = open_classifier(tmp_path / "three", 3, seed=9)
    assert torch.equal(kept.classifier.weight, first.classifier.weight)
    with pytest.raises(DataError, match="expected a head with 2 labels, got one with 3"):
        open_classifier(tmp_path / "three", 2)
    plan = secateurs.prune(tiny_model("bert"), method="random", budget="heads=0.5")
    secateurs.save(secateurs.convert(tiny_model("bert"), plan), tmp_path / "pruned")
    with pytest.raises(DataError, match="expected a dense model to prune"):
        open_classifier(tmp_path / "pruned", 2)
    with pytest.raises(CheckpointError, match="expected a directory"):
        open_classifier(tmp_path / "nothing", 2)


def test_a_score_is_regressed(model_folder, tmp_path):
    rows = [
        {"sentence1": s["sentence"], "sentence2": "a river", "label": 5.0 * s["label"]}
        for s in sentences(12)
    ]
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.jsonl", rows)
    data = TaskData.read(find_task("stsb"), open_tokenizer(model_folder), tmp_path, 16)
    model = open_classifier(model_folder, 1)
    train(model, data, 1, tmp_path / "work", Settings(lr=1e-3, batch_size=4), progress=False)
    assert model(input_ids=torch.ones(1, 3).long()).logits.shape == (1, 1)
    assert -1 <= evaluate(model, data)["spearman"] <= 1


def test_equal_epochs_for_every_method_and_going_on_after_an_interruption(model_folder, glue):
    """A training method's epochs and its recovery are as many as the recovery of a one-shot one,
    and a second call finds all of it done."""
    data = TaskData.read(find_task("sst2"), open_tokenizer(model_folder), glue, 16)
    settings = Settings(lr=1e-3, batch_size=8)
    work = glue.parent / "work"
    ends = {}
    seen = []

    def look(model, plan):
        seen.append(evaluate(secateurs.apply(model, plan), data))

    for method, budget in (("magnitude", "heads=0.5"), ("dsp", "heads=0.5")):
        for attempt in range(2):
            outcome = prune_on_task(
                open_classifier(model_folder, 2), data, method, budget, work / method, settings,
                prune_epochs=2, recover_epochs=1, progress=False, before_recovery=look,
            )  # fmt: skip
            state = {k: v.clone() for k, v in outcome.model.state_dict().items()}
            files = work.joinpath(method).glob("*/checkpoint-*/trainer_state.json")
            written = {path: path.stat().st_mtime_ns for path in files}
            if attempt:
                assert all(torch.equal(state[k], ends[method][0][k]) for k in state)
                assert written == ends[method][1], "nothing is trained again"
            ends[method] = (state, written)
        folders = {path.parent.name: path.name for path in (work / method).glob("*/checkpoint-*")}
        one_shot = {"recover": "checkpoint-15"}
        assert folders == (
            one_shot if method == "magnitude"
            else {"prune": "checkpoint-10", "recover": "checkpoint-5"}
        )  # fmt: skip
        masked = secateurs.apply(outcome.model, outcome.plan)
        assert evaluate(masked, data) == outcome.metrics
        assert seen[0] == seen[1] != outcome.metrics, "the plan, before it recovered"
        seen.clear()


@pytest.mark.parametrize("budget", ["heads=0.5", "patterns=0.5,vector=16"])
def test_what_is_pruned_at_once_is_re_fitted_before_it_recovers(model_folder, glue, budget):
    data = TaskData.read(find_task("sst2"), open_tokenizer(model_folder), glue, 16)
    settings = Settings(lr=1e-3, batch_size=8)
    states = {}
    for refits in (True, False):
        outcome = prune_on_task(
            open_classifier(model_folder, 2), data, "magnitude", budget, glue.parent / "work",
            settings, prune_epochs=0, recover_epochs=0, examples=16, refits=refits, progress=False,
        )  # fmt: skip
        states[refits] = outcome.model.state_dict()
        assert ("refit" in outcome.seconds) == refits
    dense = open_classifier(model_folder, 2).eval()
    some = data.batches(data.train[:16], 8)
    fitted = secateurs.refit(dense, outcome.plan, some, progress=False).state_dict()
    assert all(torch.equal(states[True][name], value) for name, value in fitted.items())
    assert all(torch.equal(states[False][name], v) for name, v in dense.state_dict().items())
    assert any(not torch.equal(value, states[False][name]) for name, value in fitted.items())


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])


@pytest.mark.parametrize(
    ("method", "budget", "more"),
    [
        ("dsp", "heads=0.5", ["--dense-epochs", 1, "--imitate"]),
        ("gradient", "neurons=0.5", ["--dense-epochs", 0]),
        ("seven", "blocks=0.5,block=16", ["--option", "every=2"]),
        ("mlpruning", "heads=0.5,neurons=0.5,blocks=0.8,block=16", ["--imitate"]),
    ],
)
def test_the_command_prunes_on_a_task_and_saves_what_it_says(
    model_folder, glue, tmp_path, capsys, method, budget, more
):
    out, told = tmp_path / "out", tmp_path / "told.json"
    common = ["--model", model_folder, "--task", "sst2", "--data-dir", glue, "--out", out]
    epochs = ["--prune-epochs", 2, "--recover-epochs", 1, "--batch-size", 8, "--lr", 1e-3]
    chosen = ["--method", method, "--budget", budget, "--json", told]
    assert run("prune-task", *common, *chosen, *epochs, *more) == cli.OK
    result = json.loads(told.read_text())
    assert result["density"]["heads"] == (0.5 if "heads" in budget else 1.0)
    assert set(result["metrics"]) == {"dense", "pruned", "saved"}
    assert result["metrics"]["saved"]["accuracy"] == result["metrics"]["pruned"]["accuracy"]
    # A model without a head is fine-tuned first.
    first = {"refit"} if method == "gradient" else {"dense"}
    assert set(result["seconds"]) == first | {"prune", "recover"}
    data = TaskData.read(find_task("sst2"), open_tokenizer(out), glue, 128)
    assert evaluate(secateurs.load(out), data) == result["metrics"]["saved"]
    assert "accuracy" in capsys.readouterr().out
    assert not Path(f"{out}-checkpoints").exists()


def test_a_decoder_without_padding_classifies_alike_alone_and_padded(model_folder, glue, tmp_path):
    tokenizer, path = open_tokenizer(model_folder), tmp_path / "llama"
    tokenizer.pad_token, tokenizer.eos_token = None, "winter"
    tokenizer.save_pretrained(path)
    tiny_model("llama").save_pretrained(path)
    tokenizer, model = open_tokenizer(path), open_classifier(path, 2)
    assert tokenizer.pad_token is None
    assert fit_tokenizer(tokenizer, model, 16) == 16
    data = TaskData.read(find_task("sst2"), tokenizer, glue, 16)
    with torch.no_grad():
        for padded in data.batches(data.validation, 8):
            together = model(**padded).logits
            for i, mask in enumerate(padded["attention_mask"].bool()):
                if not padded["input_ids"][i, mask].eq(tokenizer.eos_token_id).any():
                    alone = model(input_ids=padded["input_ids"][i, mask][None]).logits[0]
                    torch.testing.assert_close(together[i], alone)


# What to give each option of prune-task in another run than the usual one, and None where it says
# only whence to read and whereto to write.
OTHERS: dict[str, list[object] | None] = {
    "--model": None, "--out": None, "--data-dir": None, "--checkpoints": None, "--json": None,
    "--debug": None, "--no-progress": None, "--help": None,
    "--task": ["cola"], "--allocator": ["per_layer"],
    "--examples": [3], "--batch-size": [5], "--max-length": [3], "--lr": [0.01], "--seed": [7],
    "--train-examples": [9], "--dense-epochs": [1], "--prune-epochs": [2], "--recover-epochs": [2],
    "--imitate": [], "--no-refit": [], "--training-precision": ["bf16"], "--precision": ["int8"],
}  # fmt: skip
OF_METHODS = {
    "gradient": {"--budget": ["neurons=0.4"], "--method": ["magnitude"], "--option": ["rounds=2"]},
    "dsp": {"--budget": ["heads=0.25"], "--method": ["voita"], "--option": ["cooldown=0.25"]},
}
OPTIONS = [action.option_strings[-1] for action in prune_parser()._actions]


@pytest.mark.parametrize("method", OF_METHODS)
def test_every_option_beside_a_task_changes_the_run_or_is_refused(
    model_folder, glue, tmp_path, method
):
    write(glue / "cola" / "train.jsonl", sentences(20))
    write(glue / "cola" / "validation.jsonl", sentences(4))

    def outcome(name: str, *more: object) -> bytes | None:
        out = tmp_path / name
        usual = {
            "--model": model_folder, "--task": "sst2", "--data-dir": glue, "--method": method,
            "--budget": "neurons=0.5" if method == "gradient" else "heads=0.5", "--out": out,
            "--dense-epochs": 0, "--prune-epochs": 1, "--recover-epochs": 1, "--lr": 1e-3,
        }  # fmt: skip
        try:
            status = run("prune-task", *(word for pair in usual.items() for word in pair), *more)
        except SystemExit as refused:
            status = refused.code
        assert status in (cli.OK, cli.BAD_INPUT)
        if status == cli.BAD_INPUT:
            assert not out.exists()
            return None
        return b"".join(path.read_bytes() for path in saved_files(out))

    assert method in secateurs.METHODS
    usual = outcome("usual")
    assert usual == outcome("again")
    given = OTHERS | OF_METHODS[method]
    assert {*OPTIONS} == given.keys()
    for option, words in given.items():
        if words is not None:
            assert outcome(option, option, *words) != usual, f"{option} is passed over"


def test_a_scorer_learns_from_tasks_and_prunes_another(model_folder, glue, tmp_path, capsys):
    """Of a pair task `prune` takes the scorer's first output, of sst2 the second."""
    rows = [{"sentence1": s["sentence"], "sentence2": "a river", "label": 0} for s in sentences(9)]
    for split in ("train", "validation"):
        write(glue / "rte" / f"{split}.jsonl", rows)
    assert meta_task(find_task("rte"), open_tokenizer(model_folder), glue, 16).pair
    scorer, told = tmp_path / "scorer", tmp_path / "told.json"
    common = ["--model", model_folder, "--data-dir", glue]
    learning = ["--tasks", "rte,sst2", "--steps", 3, "--batch-size", 4, "--train-examples", 8]
    assert run("meta-train", *common, *learning, "--out", scorer, "--json", told) == cli.OK
    assert json.loads(told.read_text())["tasks"] == ["rte", "sst2"]
    assert f"saved to {scorer}" in capsys.readouterr().out
    method = ["--method", "smp", "--option", f"artifact={scorer}", "--budget", "heads=0.5"]
    epochs = ["--dense-epochs", 0, "--prune-epochs", 0, "--recover-epochs", 0]
    for task, pair in (("rte", True), ("sst2", False)):
        out = tmp_path / task
        words = ["--task", task, *method, *epochs, "--out", out]
        assert run("prune-task", *common, *words) == cli.OK
        notes = secateurs.SparsityPlan.load(saved_files(out)[1]).notes
        assert notes["options"] == {"pair": pair, "artifact": str(scorer)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tasks", "rte,sst3"], "expected a task in"),
        (["--tasks", "cola"], "expected one file train"),
        (["--batch-size", "1"], "batches of two examples or more"),
        (["--out", "."], "a new file in an existing folder"),
        (["--out", "no/folder"], "a new file in an existing folder"),
    ],
)
def test_meta_training_on_bad_input_is_one_sentence(
    model_folder, glue, tmp_path, capsys, arguments, complaint
):
    usual = ["--model", model_folder, "--data-dir", glue, "--tasks", "sst2", "--steps", 2]
    scorer = tmp_path / "scorer"
    assert run("meta-train", *usual, "--out", scorer, *arguments) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert complaint in error
    assert error.strip().count("\n") == 0
    assert not scorer.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--task", "sst3"], "expected a task in"),
        (["--task", "cola"], "expected one file train"),
        (["--prune-epochs", "0"], "expected epochs for dsp"),
        (["--option", "cooldown=999"], "cooldown that ends before"),
        (["--budget", "heads=0.99"], "keeps 0"),
        (["--budget", "neurons=0.5"], "the budget names neurons"),
    ],
)
def test_bad_input_is_one_sentence_and_saves_nothing(
    model_folder, glue, tmp_path, capsys, arguments, complaint
):
    out = tmp_path / "out"
    usual = ["--task", "sst2", "--data-dir", glue, "--method", "dsp", "--budget", "heads=0.5"]
    common = ["--model", model_folder, "--out", out]
    assert run("prune-task", *common, *usual, *arguments) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert complaint in error
    assert error.strip().count("\n") == 0
    assert not out.exists()


def test_the_former_name_of_the_precision_of_training_is_read_and_told(capsys):
    def read(word):
        words = ["--model", "M", "--out", "O", "--task", "sst2", "--budget", "heads=0.5"]
        options = prune_parser().parse_args([*words, "--precision", word])
        options.command = "prune-task"
        prune_task._rename(options)
        return options.training_precision, options.precision

    assert read("bf16") == ("bf16", None)
    assert "is now --training-precision bf16" in capsys.readouterr().err
    assert read("int8") == (None, "int8")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--option", "cooldown=999"],
        ["--option", "t1=-1"],
        ["--option", "pipelined=perhaps"],
        ["--budget", "heads=0.99"],
        ["--budget", "neurons=0.5"],
        ["--method", "smp", "--budget", "heads=0.4"],
        ["--method", "seven", "--budget", "blocks=0.5,block=48"],
        ["--prune-epochs", "0"],
        ["--training-precision", "fp16"],
        ["--precision", "bf16", "--training-precision", "bf16"],
        ["--checkpoints", "out"],
    ],
    ids=" ".join,
)
def test_nothing_is_trained_before_what_can_be_refused_is(
    model_folder, glue, tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "secateurs.training.task_recipe.train", lambda *_, **__: pytest.fail("trained")
    )
    usual = ["--task", "sst2", "--data-dir", glue, "--method", "dsp", "--budget", "heads=0.5"]
    common = ["--model", model_folder, "--out", "out", "--dense-epochs", 1]
    assert run("prune-task", *common, *usual, *arguments) == cli.BAD_INPUT
    assert capsys.readouterr().err.strip().count("\n") == 0
    assert not Path("out").exists()


def test_the_benchmark_of_methods_adds_what_is_missing_and_leaves_no_checkpoints(
    model_folder, glue, tmp_path
):
    out, work = tmp_path / "rows.jsonl", tmp_path / "work"
    script = Path(__file__).parents[2] / "benchmarks" / "methods.py"
    options = {
        "data-dir": glue, "tasks": "sst2", "model": model_folder, "budgets": "heads=0.5",
        "dense-epochs": 1, "prune-epochs": 2, "min-time": 0.01, "work": work, "json": out,
    }  # fmt: skip

    def run(methods: str, seeds: int) -> list[tuple[str, int]]:
        given = {**options, "methods": methods, "seeds": seeds}
        words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
        subprocess.run([sys.executable, str(script), *words], check=True)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(row["pruned"] == row["converted"] for row in rows)
        return [(row["method"], row["seed"]) for row in rows]

    first = [("magnitude", 0), ("magnitude", 1)]
    assert run("magnitude", 2) == first
    assert run("magnitude,dsp", 2) == [*first, ("dsp", 0), ("dsp", 1)]
    assert sorted(str(path.relative_to(work)) for path in work.glob("*/*")) == [
        "sst2-0/dense",
        "sst2-1/dense",
    ]
