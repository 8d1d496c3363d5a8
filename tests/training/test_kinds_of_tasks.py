"""Whole runs on tasks other than sentences: words with a class each, and images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import WORDS, dense_folder, write

import secateurs
from secateurs.cli import main as cli
from secateurs.data.tasks import find_task
from secateurs.storage.model_folders import open_classifier, open_image_processor, open_tokenizer
from secateurs.training.task_recipe import TaskData, evaluate


def upos_folder(path: Path) -> Path:
    """Words of the first half are nouns, others verbs, in sentences of four to eight."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(30):
        words = random.permutation(WORDS)[: 4 + i % 5].tolist()
        classes = ["VERB" if WORDS.index(word) > 6 else "NOUN" for word in words]
        rows.append({"tokens": words, "upos": classes})
    write(path / "train.jsonl", rows[:20])
    write(path / "dev.jsonl", rows[20:])
    return path


@pytest.fixture
def upos(tmp_path) -> list[object]:
    return ["--model", dense_folder(tmp_path / "dense"), "--task", "upos",
            "--data-dir", upos_folder(tmp_path / "upos")]  # fmt: skip


@pytest.fixture
def images(tmp_path) -> list[object]:
    pytest.importorskip("PIL")
    from support.images import image_folder, vit_folder

    return ["--model", vit_folder(tmp_path / "vit"), "--task", "images",
            "--data-dir", image_folder(tmp_path / "images")]  # fmt: skip


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])


def pruned(words: list[object], out: Path, *more: object) -> dict:
    told = out.parent / "told.json"
    epochs = ["--prune-epochs", 2, "--recover-epochs", 1, "--batch-size", 8, "--lr", 1e-2]
    assert run("prune-task", *words, "--out", out, "--json", told, *epochs, *more) == cli.OK
    return json.loads(told.read_text())


@pytest.mark.parametrize("kind", ["upos", "images"])
def test_prune_task_trains_prunes_and_saves_what_it_says(kind, tmp_path, request):
    words, out = request.getfixturevalue(kind), tmp_path / "out"
    chosen = ("--method", "dsp", "--budget", "heads=0.5") if kind == "upos" else (
        "--method", "gradient", "--budget", "neurons=0.5"
    )  # fmt: skip
    result = pruned(words, out, *chosen, "--dense-epochs", 4)
    directory = words[-1]
    task = find_task(kind, directory)
    processor = (open_tokenizer if kind == "upos" else open_image_processor)(out)
    data = TaskData.read(task, processor, directory, 16)
    assert evaluate(secateurs.load(out), data) == result["metrics"]["saved"]
    assert result["metrics"]["dense"]["accuracy"] > 0.8  # two classes, or three: it has learnt
    assert result["density"]["parameters"] < 1


def test_words_are_judged_one_by_one_and_not_by_batches(upos):
    task, tokenizer = find_task("upos"), open_tokenizer(upos[1])
    data = TaskData.read(task, tokenizer, upos[-1], 16)
    model = open_classifier(upos[1], task.labels, 1, task.head)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    right = []
    for example in data.validation:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
        right += (logits.argmax(-1) == torch.tensor(example["labels"])).tolist()
    for size in (1, 4, 64):
        assert evaluate(model, data, size)["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("kind", "words", "told"),
    [
        ("images", ["--max-length", "9"], "--max-length only for a task of text"),
        ("images", ["--task", "sst2"], "cannot read the classifier"),
        ("upos", ["--task", "upos:de_gsd"], "expected a folder de_gsd"),
        ("upos", ["--task", "upos:"], "expected a task in"),
        ("upos", ["--task", "images"], "expected one file train"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(kind, words, told, tmp_path, request, capsys):
    usual = [*request.getfixturevalue(kind), "--budget", "heads=0.5", "--out", tmp_path / "out"]
    assert run("prune-task", *usual, *words) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert told in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_a_scorer_does_not_learn_from_images(images, tmp_path, capsys):
    words = [word if word != "--task" else "--tasks" for word in images]
    assert run("meta-train", *words, "--out", tmp_path / "scorer") == cli.BAD_INPUT
    assert "expected tasks of text" in capsys.readouterr().err
