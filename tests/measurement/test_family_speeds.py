"""The benchmark of all families: what it builds, and what its rows say. Nothing is timed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.benchmark_modules import benchmark_module
from transformers import CONFIG_MAPPING

from secateurs.architectures.records import ARCHITECTURES

families = benchmark_module("families")


def test_every_type_is_there_at_a_size_that_is_timed_quickly():
    assert {family.model_type for family in families.FAMILIES.values()} == ARCHITECTURES.keys()
    for name, family in families.FAMILIES.items():
        if family.model_type not in CONFIG_MAPPING:
            continue  # this transformers has none of it
        config = family.config()
        assert 256 <= config.hidden_size <= 768, name
        layers = 12 if hasattr(config, "conv_stride") else families.LAYERS
        assert config.num_hidden_layers == layers, name
        for decoder in ("decoder_layers", "num_decoder_layers"):
            assert getattr(config, decoder, layers) == layers, name
        assert getattr(config, "vocab_size", None) in (None, 33, 1000), name


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the benchmark on a tiny model, and return its exit status and the rows of its file."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    monkeypatch.setitem(families.FAMILIES, "tiny", families.Family("bert", sizes, tokens=8))
    monkeypatch.setattr(families, "prepare", lambda _: None)  # what other tests are told stays
    path = tmp_path / "rows.jsonl"

    def rows_of(*arguments: str) -> tuple[int, list[dict]]:
        usual = ["--families", "tiny", "--min-time", "0", "--json", str(path)]
        status = families.main([*usual, *arguments])
        return status, [json.loads(line) for line in path.read_text().splitlines()]

    return rows_of


def test_a_row_for_each_batch_is_made_once(run, monkeypatch):
    status, rows = run()
    assert status == 0
    assert [(row["model"], row["shape"]) for row in rows] == [("tiny", [1, 8]), ("tiny", [8, 8])]
    for row in rows:
        assert row["ok"]
        assert row["speedup_dense"] == row["baseline_ms"] / row["ms"]
        assert row["speedup_half"] == row["baseline_ms"] / row["half_ms"]
    status, both = run("--precisions", "fp32", "bf16")
    assert status == 0
    assert both[:2] == rows
    assert [row["dtype"] for row in both[2:]] == ["bfloat16"] * 2
    monkeypatch.setattr(families.Models, "of", None)
    assert run() == (0, both)


@pytest.mark.parametrize("wrong", [("masked", "stock"), ("dense", "half")], ids=" is ".join)
def test_a_row_whose_outputs_are_off_says_so(run, monkeypatch, wrong):
    name, other = wrong
    made = families.Models.of

    def mixed(stock):
        models = made(stock)
        return replace(models, **{name: getattr(models, other)})

    monkeypatch.setattr(families.Models, "of", mixed)
    status, rows = run()
    assert status == 1
    assert [row["ok"] for row in rows] == [False, False]
