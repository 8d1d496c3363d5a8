"""Pruned folders for other runtimes: each computes what the converted model does, at other sizes
than were traced, and what cannot be exported is refused in a sentence."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from cli.conftest import run
from support.tiny_models import tiny_model
from support.word_folders import saved
from transformers import AutoTokenizer

from secateurs import HeadMask, NeuronMask, SparsityPlan, convert, load, save
from secateurs.errors import BackendError, CheckpointError
from secateurs.integrations import exported
from secateurs.integrations.runtimes import RUNTIMES, runtime
from secateurs.measurement.inputs import tokens_of_an_input
from secateurs.storage.model_folders import open_model

PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, False])),
        "layers.1.neurons": NeuronMask(torch.arange(96) < 30),
    }
)
TWO_LAYERS = {"num_hidden_layers": 2}


def pruned(path, family, **convert_options):
    dense = saved(path / "dense", tiny_model(family, **TWO_LAYERS), pad_token="[PAD]")
    save(convert(open_model(dense), PLAN, **convert_options), path / "pruned")
    AutoTokenizer.from_pretrained(dense).save_pretrained(path / "pruned")
    return path / "pruned"


@pytest.mark.parametrize(
    ("target", "family"),
    [("torch", "llama"), ("onnx", "bert"), ("openvino", "bert")],
)
@pytest.mark.filterwarnings("ignore")  # of torch's and the runtimes' own
def test_a_runtime_computes_what_the_converted_model_does(target, family, tmp_path):
    for package in RUNTIMES[target].PACKAGES:
        pytest.importorskip(package)
    folder, told = pruned(tmp_path, family), tmp_path / "told.json"
    options = ["--to", target, "--out", tmp_path / "out", "--shapes", "1x7", "--min-time", "0.01"]
    assert run("export", folder, *options, "--json", told) == 0
    result = json.loads(told.read_text())
    assert result["rows"][0]["exported_ms"] > 0
    assert result["rel_err"] < 1e-5
    assert result["exported_bytes"] > 1e4
    batch = {"input_ids": torch.randint(3, 14, (4, 11)), "attention_mask": torch.ones(4, 11).long()}
    if family == "bert":
        batch["token_type_ids"] = torch.ones(4, 11).long()
    call = runtime(target).opened(tmp_path / "out" / result["file"], result["output"])
    with torch.no_grad():
        wanted = load(folder)(**batch)[0]
    assert torch.allclose(call(batch), wanted, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the old house")["input_ids"] == [
        2,
        3,
        4,
    ]


@pytest.mark.filterwarnings("ignore")  # of torch's own
def test_a_folder_of_sentence_transformers_gives_embeddings(tmp_path):
    peer = pytest.importorskip("sentence_transformers", minversion="6")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    folder = pruned(tmp_path, "bert")
    parts = (modules.Pooling(64, pooling_mode="mean"), modules.Normalize())
    st = peer.SentenceTransformer(modules=[modules.Transformer(str(folder)), *parts], device="cpu")
    st.save(str(tmp_path / "st"))
    made = exported.export(tmp_path / "st", "torch", tmp_path / "out")
    assert made.output == "sentence_embedding"
    texts = ["the old house stood", "nobody"]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    assert torch.allclose(made.run(batch), torch.from_numpy(st.encode(texts)), atol=1e-5)


def test_a_package_that_is_missing_is_named_with_its_pip_line(tmp_path, monkeypatch, capsys):
    folder = pruned(tmp_path, "bert")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("export", folder, "--to", "onnx", "--out", tmp_path / "out") == 2
    assert (
        "onnx is not installed: pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    folder = pruned(tmp_path, "bert")
    row = RUNTIMES["torch"]
    monkeypatch.setattr(row, "opened", lambda path, output: lambda batch: torch.zeros(1))
    with pytest.raises(CheckpointError, match="expected what the compact model computes"):
        exported.export(folder, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore")  # of torch's own
@pytest.mark.parametrize("family", ["vit", "wav2vec2", "audio-spectrogram-transformer"])
def test_models_of_other_inputs_are_exported(family, tmp_path):
    save(convert(tiny_model(family), SparsityPlan()), tmp_path / "pruned")
    made = exported.export(tmp_path / "pruned", "torch", tmp_path / "out")
    tokens = tokens_of_an_input(made.compact)
    assert (tokens is None) == (family == "wav2vec2")
    batch = made.inputs((5, tokens or 17))
    assert torch.allclose(made.run(batch), made.converted(batch), atol=1e-4)


def test_what_cannot_be_exported_is_refused(tmp_path):
    save(convert(tiny_model("bart"), SparsityPlan()), tmp_path / "bart")
    with pytest.raises(BackendError, match=r"one stack of layers .* got a Bart.*decoder_in"):
        exported.export(tmp_path / "bart", "torch", tmp_path / "out")
    assert run("export", tmp_path / "bart", "--to", "torch", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
