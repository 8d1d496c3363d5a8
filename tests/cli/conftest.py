"""The command as tests of it call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_model
from support.word_folders import WORDS, saved

from secateurs.cli import main as cli


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


def run(*arguments: object) -> int:
    return cli.main([*map(str, arguments), "--no-progress"])


def prune(folder: Path, out: Path, *more: object) -> int:
    return run("prune", "--model", folder, "--out", out, "--budget", "heads=0.5,neurons=0.5", *more)
