"""The command as tests of it call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.made_up_times import made_up_table
from support.tiny_models import tiny_model
from support.word_folders import WORDS, saved

from secateurs.cli import main as cli
from secateurs.search import LatencyTable
from secateurs.search import search as module
from secateurs.storage.model_folders import open_classifier, open_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "dense", tiny_model("bert"), pad_token="[PAD]")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(" ".join(WORDS[i : i + 5]) for i in range(9)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pairs of sentences with scores, as JSON lines."""
    path = tmp_path / "pairs.jsonl"
    starts = [(0, 9), (3, 7), (5, 0), (8, 2), (1, 1), (4, 6)]
    rows = [
        {
            "sentence1": " ".join(WORDS[first : first + 4]),
            "sentence2": " ".join(WORDS[second : second + 3]),
            "score": score,
        }
        for score, (first, second) in enumerate(starts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def classifier(folder, tmp_path) -> Path:
    """The model of `folder` with a head for two labels, and its tokenizer."""
    path = tmp_path / "classifier"
    model = open_classifier(folder, 2, seed=3)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.save_pretrained(path)
    open_tokenizer(folder).save_pretrained(path)
    return path


@pytest.fixture
def made_up_times(monkeypatch):
    """A table that is made up, and results that take what it predicts."""

    def table(_, model, *args, **options):
        return made_up_table(module.find_sites(model).layers[0])

    def measured(search, fast):
        kept = [int(k.heads.sum()) + int(k.neurons.sum()) / 32 for k in kept_of(fast)]
        return module.Times(9 + sum(kept), 0.1, 60.0)

    def kept_of(fast):
        from secateurs.conversion.report import conversion_of

        conversion = conversion_of(fast)
        return [conversion.sites.keep(conversion.plan, i) for i in range(3)]

    monkeypatch.setattr(LatencyTable, "measured", classmethod(table))
    monkeypatch.setattr(module.Search, "_times", measured)


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])


def prune(folder: Path, out: Path, *more: object) -> int:
    return run("prune", "--model", folder, "--out", out, "--budget", "heads=0.5,neurons=0.5", *more)
