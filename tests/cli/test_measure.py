"""`secateurs measure`: how embeddings rank pairs, and what goes into a card."""

from __future__ import annotations

import json

import pytest
from cli.conftest import prune, run
from support.tiny_models import tiny_model
from support.word_folders import saved
from transformers import AutoTokenizer

from secateurs.cli import main as cli
from secateurs.data.sentence_pairs import read_pairs
from secateurs.measurement.similarity import mean_embeddings, rank_correlation
from secateurs.storage.model_card import is_ours
from secateurs.storage.model_folders import open_model

QUICK = ("--shapes", "1x4", "2x6", "--min-time", "0")


@pytest.fixture
def pruned(folder, tmp_path):
    assert prune(folder, tmp_path / "pruned", "--method", "magnitude") == 0
    return tmp_path / "pruned"


def test_pairs_are_ranked_by_mean_states(folder, pruned, pairs, tmp_path, capsys):
    told = tmp_path / "told.json"
    words = ("--baseline", folder, *QUICK, "--pairs", pairs, "--json", told)
    assert run("measure", pruned, *words) == 0
    result = json.loads(told.read_text())["pairs"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, path in (("dense", folder), ("pruned", pruned)):
        embed = mean_embeddings(open_model(path), tokenizer, 128)
        assert result[name] == {"spearman": rank_correlation(embed, read_pairs(pairs))}
    assert result["dense"] != result["pruned"]
    last = capsys.readouterr().out.splitlines()
    assert last[-2].split() == ["pairs.jsonl", "dense", "pruned"]
    assert last[-1].split() == ["spearman", *(f"{v['spearman']:.4f}" for v in result.values())]


def test_what_was_measured_goes_into_the_card(folder, pruned, pairs, text, tmp_path):
    told = tmp_path / "told.json"
    words = ("--baseline", folder, *QUICK, "--pairs", pairs, "--text", text, "--json", told)
    before = (pruned / "README.md").read_text()
    assert run("measure", pruned, *words) == 0
    assert (pruned / "README.md").read_text() == before
    for _ in range(2):
        assert run("measure", pruned, *words, "--card") == 0
    result, card = json.loads(told.read_text()), (pruned / "README.md").read_text()
    assert is_ours(pruned / "README.md")
    assert card.count("## Measured") == 1
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    at = next(i for i, row in enumerate(rows) if row[0] == "batch x tokens")
    assert rows[at] == [
        "batch x tokens", "dense, ms", "pruned, ms", "times as fast", "cosine to the dense model",
        "spearman of pairs, dense", "spearman of pairs, pruned",
    ]  # fmt: skip
    assert [row[0] for row in rows[at + 1 :]] == ["1x4", "2x6"]
    for row in rows[at + 1 :]:
        assert row[4] == f"{result['cosine']['mean']:.4f}"
        assert row[5:] == [f"{v['spearman']:.4f}" for v in result["pairs"].values()]
    fast = [row for row in result["rows"] if row["variant"] == "pruned"]
    assert [float(row[2]) for row in rows[at + 1 :]] == [
        pytest.approx(row["ms"], rel=0.05) for row in fast
    ]


def test_a_card_that_was_changed_is_refused_before_the_work(folder, pruned, capsys, monkeypatch):
    monkeypatch.setattr("secateurs.measurement.quality.speed", None)
    path = pruned / "README.md"
    path.write_text(path.read_text() + "\nMine.\n")
    assert run("measure", pruned, "--baseline", folder, "--card") == cli.BAD_INPUT
    assert "that secateurs wrote and nobody changed" in capsys.readouterr().err
    assert path.read_text().endswith("Mine.\n")
    assert run("measure", folder, "--baseline", folder, "--card") == cli.BAD_INPUT
    assert "a folder that secateurs saved" in capsys.readouterr().err


def test_a_model_with_a_head_has_no_embeddings(pairs, tmp_path, capsys):
    headed = saved(tmp_path / "headed", tiny_model("roberta"), pad_token="[PAD]")
    words = ("--baseline", headed, *QUICK, "--pairs", pairs)
    assert run("measure", headed, *words) == cli.BAD_INPUT
    assert "expected a model without a head" in capsys.readouterr().err
