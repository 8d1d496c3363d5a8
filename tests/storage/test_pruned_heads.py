"""Folders that transformers 4 wrote with heads removed: made here by hand, as it made them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import answer, calibration, relative
from support.tiny_models import tiny_model

from secateurs import convert, convert_compact, open_pruned_heads, prune_heads
from secateurs.errors import CheckpointError, PlanError
from secateurs.storage.model_folders import open_model
from secateurs.storage.pruned_heads import find_pruneable_heads_and_indices

HEADS = {0: [1, 3], 2: [0]}


def old_folder(model, path, heads=HEADS):
    """What transformers 4 saved: smaller linears, and the heads in config.json."""
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    size = model.config.hidden_size // model.config.num_attention_heads
    for layer, gone in heads.items():
        rows = [r for r in range(model.config.hidden_size) if r // size not in gone]
        attention = f"encoder.layer.{layer}.attention"
        for part in ("query", "key", "value"):
            for kind in ("weight", "bias"):
                name = f"{attention}.self.{part}.{kind}"
                tensors[name] = tensors[name][rows].contiguous()
        name = f"{attention}.output.dense.weight"
        tensors[name] = tensors[name][:, rows].contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["pruned_heads"] = {str(layer): gone for layer, gone in heads.items()}
    (path / "config.json").write_text(json.dumps(config))
    return path


def silenced(model):
    """The model as removing heads leaves it: what they give is nothing."""
    size = model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        for layer, gone in HEADS.items():
            output = model.encoder.layer[layer].attention.output.dense.weight
            for head in gone:
                output[:, head * size : (head + 1) * size] = 0
    return model


@pytest.fixture
def bert():
    return tiny_model("bert")


def test_an_old_folder_computes_what_it_did(bert, tmp_path):
    folder = old_folder(bert, tmp_path / "old")
    model, plan = open_pruned_heads(folder)
    batch = calibration(bert, 1)[0]
    want = answer(silenced(bert), batch)
    assert relative(answer(model, batch), want) < 1e-6
    assert relative(answer(convert(model, plan), batch), want) < 1e-5


def test_other_doors_name_the_one_for_old_folders(bert, tmp_path):
    with pytest.raises(CheckpointError, match="open_pruned_heads"):
        open_model(old_folder(bert, tmp_path / "old"))


def test_prune_heads_gives_a_smaller_model_that_trains_and_converts(bert):
    batch, before = calibration(bert, 1)[0], answer(bert, calibration(bert, 1)[0])
    small = prune_heads(bert, HEADS)
    assert torch.equal(answer(bert, batch), before)
    assert small.encoder.layer[0].attention.self.query.weight.shape == (32, 64)
    want = answer(silenced(bert), batch)
    assert relative(answer(small, batch), want) < 1e-5
    assert all(p.requires_grad for p in small.parameters())
    assert relative(answer(convert_compact(small), batch), want) < 1e-5


@pytest.mark.parametrize(
    ("heads", "words"), [({0: [4]}, "heads from 0 to 3"), ({9: [0]}, "a layer from 0 to 2")]
)
def test_heads_that_are_not_there_are_refused(bert, heads, words):
    with pytest.raises(PlanError, match=words):
        prune_heads(bert, heads)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "expected pruned_heads"),
        ([1], "expected pruned_heads"),
        ({"first": [1]}, "lists of heads by layer"),
        ({"0": ["1"]}, "lists of heads by layer"),
        ({"0": [0]}, "of shape"),
    ],
)
def test_entries_that_do_not_fit_are_refused(bert, tmp_path, entry, words):
    folder = old_folder(bert, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pruned_heads": entry}))
    with pytest.raises(CheckpointError, match=words):
        open_pruned_heads(folder)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"_attn_implementation": "somebody/kernels"}, "expected eager"),
        ({"num_hidden_layers": 10**6}, "as num_hidden_layers"),
        ({"architectures": ["Nobody"]}, "an architecture of transformers"),
    ],
)
def test_a_config_of_a_stranger_is_checked_as_at_other_doors(bert, tmp_path, entry, words):
    folder = old_folder(bert, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entry}))
    with pytest.raises(CheckpointError, match=words):
        open_pruned_heads(folder)


def test_rows_that_stay_are_counted_without_heads_that_went_before():
    """Of heads 0, 1, 2, 3 head 1 is gone: 0, 2, 3 lie at places 0, 1, 2."""
    new, index = find_pruneable_heads_and_indices({1, 2}, 3, 2, {1})
    assert new == {2}
    assert index.tolist() == [0, 1, 4, 5]


def test_the_example_of_the_documents_runs(bert, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/integrations.md").read_text("utf-8")
    (block,) = re.findall(
        r"```python\n(.*?)```", page.partition("by transformers 4\n")[2], re.DOTALL
    )
    old_folder(bert, tmp_path / "old")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "integrations.md", "exec"), names)
    batch = calibration(bert, 1)[0]
    assert relative(answer(names["fast"], batch), answer(silenced(bert), batch)) < 1e-5
