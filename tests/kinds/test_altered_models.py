"""Saved models altered in hundreds of ways by `benchmarks/fuzz.py`, which tries thousands."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch

from secateurs.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_altered_models_load_as_they_say_or_are_refused(fuzz):
    faults: list[str] = []
    rows = fuzz.fuzz(range(240), 1, faults.append)
    assert not faults
    assert sum(rows.values()) == 240
    assert {row[0] for row in rows} == set(fuzz.seeds.SEEDS)
    assert {row[1] for row in rows} == {*fuzz.alterations.ALTERATIONS, "strange file"}
    outcomes: Counter[str] = Counter()
    for row, count in rows.items():
        outcomes[row[2]] += count
    assert min(outcomes["equal"], outcomes["as said"]) > 5  # not all is refused
    assert outcomes["refused"] > 120  # nor is the alteration passed over


def raising(error: BaseException):
    def load(folder):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyError("query"), "foreign"),
        (MemoryError(), "foreign"),
        (CheckpointError("the model in x is damaged: 'query'"), "unclear"),
        (CheckpointError("the model in x is damaged: KeyError('query')"), "unclear"),
        (CheckpointError("the model in x\nis damaged"), "unclear"),
        (CheckpointError("the model in x is damaged: expected a file"), "refused"),
    ],
)
def test_the_harness_tells_a_sentence_from_anything_else(
    fuzz, monkeypatch, tmp_path, error, outcome
):
    monkeypatch.setattr(fuzz.sc, "load", raising(error))
    assert fuzz.attempt(0, 0, tmp_path)[2] == outcome


def test_the_harness_notices_an_answer_that_the_files_do_not_say(fuzz, monkeypatch, tmp_path):
    def seed(number, seed, folder):
        fuzz.seeds.write(fuzz.seeds.seed_files("bert/mixed"), folder)
        return "bert/mixed", "none", "nothing"

    whole = fuzz.sc.load

    def load(folder):
        model = whole(folder)
        with torch.no_grad():
            model.classifier.bias[0] += float(folder.name)
        return model

    monkeypatch.setattr(fuzz.alterations, "altered", seed)
    monkeypatch.setattr(fuzz.sc, "load", load)
    outcomes = []
    for shift in ("0", "1e-6", "0.01"):
        (tmp_path / shift).mkdir()
        outcomes.append(fuzz.attempt(0, 0, tmp_path / shift)[2])
    assert outcomes[:2] == ["equal", "as said"]
    assert outcomes[2].startswith("off by")


def test_every_seed_is_what_its_files_say(fuzz, tmp_path):
    """The plain reading, against which altered files are held, reads the unaltered ones."""
    for name in fuzz.seeds.SEEDS:
        folder = tmp_path / name.replace("/", "-").replace(":", "")
        folder.mkdir()
        fuzz.seeds.write(fuzz.seeds.seed_files(name), folder)
        said, want = (
            fuzz.plain_reading.as_said(name.split("/")[0], folder),
            fuzz.seeds.seed_answer(name),
        )
        assert float((said - want).abs().max() / want.abs().max()) < 1e-5, name


# What is no regular file of sane size.
