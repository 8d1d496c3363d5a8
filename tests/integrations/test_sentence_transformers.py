"""Pruned folders of sentence-transformers: opened by its own classes, with the modules they had."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli.conftest import prune, run
from support.models import saved_files
from support.tiny_models import SIZES, tiny_model
from support.training import write
from support.word_folders import WORDS, saved
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from secateurs import SparsityPlan, __version__, apply, explain, load
from secateurs.data.metrics import spearman
from secateurs.data.sentence_pairs import read_pairs
from secateurs.errors import CheckpointError
from secateurs.integrations.sentence_embeddings import folder_embeddings
from secateurs.measurement.similarity import mean_embeddings, rank_correlation
from secateurs.storage.model_folders import open_classifier, open_model
from secateurs.storage.sentence_folders import other_modules
from secateurs.storage.sentinel import SENTENCE

peer = pytest.importorskip("sentence_transformers", minversion="6")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
MAGNITUDE = ("--method", "magnitude")
TEXTS = [" ".join(WORDS[i : i + n]) for i, n in ((0, 3), (2, 9), (5, 1))]


@pytest.fixture
def folder(tmp_path):
    """An embedding model with pooling, a layer of its own behind it, normalisation and prompts."""
    plain = saved(tmp_path / "plain", tiny_model("bert"), pad_token="[PAD]", unk_token="[UNK]")
    transformer = modules.Transformer(str(plain))
    torch.manual_seed(0)
    parts = [
        transformer,
        modules.Pooling(64, pooling_mode="mean"),
        modules.Dense(64, 24, activation_function=nn.Tanh()),
        modules.Normalize(),
    ]
    model = peer.SentenceTransformer(modules=parts, prompts={"query": "the old "}, device="cpu")
    model.save(str(tmp_path / "st"))
    return tmp_path / "st"


def reranker(tmp_path):
    """A CrossEncoder with one score."""
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(RobertaConfig(**SIZES, num_labels=1, pad_token_id=0))
    plain = saved(tmp_path / "plain-reranker", model, pad_token="[PAD]")
    peer.CrossEncoder(str(plain), device="cpu").save(str(tmp_path / "reranker"))
    return tmp_path / "reranker"


def test_a_pruned_folder_opens_and_embeds_as_the_masked_model(folder, tmp_path):
    assert prune(folder, tmp_path / "out", *MAGNITUDE) == 0
    masked = peer.SentenceTransformer(str(folder), device="cpu")
    plan = SparsityPlan.load(saved_files(tmp_path / "out")[1])
    masked[0].model = apply(masked[0].model, plan)
    fast = peer.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert explain(fast[0].model) == explain(load(tmp_path / "out"))
    assert [type(module) for module in fast] == [type(module) for module in masked]
    for prompt in (None, "query"):
        got, wanted = (m.encode(TEXTS, prompt_name=prompt) for m in (fast, masked))
        assert got.shape == (3, 24)
        assert np.abs(got - wanted).max() < 1e-5
    assert fast.prompts["query"] == "the old "
    assert not np.allclose(fast.encode(TEXTS), fast.encode(TEXTS, prompt_name="query"))


def test_a_pruned_folder_saved_by_its_own_class_is_the_same_again(folder, tmp_path):
    prune(folder, tmp_path / "out", *MAGNITUDE)
    fast = peer.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    fast.save(str(tmp_path / "again"))
    again = peer.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), fast.encode(TEXTS))


def test_a_cross_encoder_scores_as_the_masked_model(tmp_path):
    plain = saved(tmp_path / "plain", tiny_model("roberta"), pad_token="[PAD]")
    peer.CrossEncoder(str(plain), device="cpu").save(str(tmp_path / "ce"))
    assert prune(tmp_path / "ce", tmp_path / "out", *MAGNITUDE) == 0
    masked = peer.CrossEncoder(str(tmp_path / "ce"), device="cpu")
    plan = SparsityPlan.load(saved_files(tmp_path / "out")[1])
    masked[0].model = apply(masked[0].model, plan)
    fast = peer.CrossEncoder(str(tmp_path / "out"), device="cpu")
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    got, wanted = fast.predict(pairs), masked.predict(pairs)
    assert explain(fast[0].model) == explain(load(tmp_path / "out"))
    assert np.abs(got - wanted).max() < 1e-5


def test_pairs_are_ranked_by_what_the_folder_makes_of_states(folder, tmp_path):
    assert prune(folder, tmp_path / "out", *MAGNITUDE) == 0
    pairs, told = tmp_path / "pairs.tsv", tmp_path / "told.json"
    spans = [(0, 9), (3, 7), (5, 0), (8, 2), (1, 1), (4, 6)]
    first, second = (
        [" ".join(WORDS[i : i + 4]) for i in side] for side in zip(*spans, strict=True)
    )
    rows = [f"{a}\t{b}\t{i}" for i, (a, b) in enumerate(zip(first, second, strict=True))]
    pairs.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    words = ("--baseline", folder, "--pairs", pairs, "--shapes", "1x4", "--min-time", "0")
    assert run("measure", tmp_path / "out", *words, "--json", told) == 0
    result = json.loads(told.read_text())["pairs"]
    for name, path in (("dense", folder), ("pruned", tmp_path / "out")):
        model = peer.SentenceTransformer(str(path), device="cpu")
        # Of unit length, as the last module leaves them.
        cosines = (model.encode(first) * model.encode(second)).sum(1)
        assert result[name]["spearman"] == pytest.approx(spearman(cosines, np.arange(6)))
    plain = mean_embeddings(open_model(folder), AutoTokenizer.from_pretrained(folder), 128)
    assert result["dense"]["spearman"] != pytest.approx(rank_correlation(plain, read_pairs(pairs)))


def test_a_model_takes_the_place_of_that_of_a_folder(folder, tmp_path):
    assert prune(folder, tmp_path / "out", *MAGNITUDE) == 0
    dense, fast = (
        peer.SentenceTransformer(str(p), device="cpu") for p in (folder, tmp_path / "out")
    )
    got = folder_embeddings(folder, load(tmp_path / "out"))(TEXTS).numpy()
    assert np.array_equal(got, fast.encode(TEXTS))
    assert not np.allclose(got, dense.encode(TEXTS), atol=1e-3)


def test_a_reranker_makes_no_embeddings(tmp_path, capsys):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\nthe old\thouse\t1\na river\twinter\t2\n")
    ranker = reranker(tmp_path)
    words = ("--baseline", ranker, "--pairs", pairs)
    assert run("measure", ranker, *words) == 2
    assert "expected a model of embeddings" in capsys.readouterr().err


def on_task(folder, tmp_path, task, rows, *more):
    for split in ("train", "validation"):
        write(tmp_path / "data" / task / f"{split}.jsonl", rows)
    return run(
        "prune-task", "--model", folder, "--out", tmp_path / "out", "--task", task, "--data-dir",
        tmp_path / "data", "--budget", "heads=0.5", "--method", "magnitude", "--recover-epochs", 1,
        *more,
    )  # fmt: skip


SCORED = [
    {"sentence1": a, "sentence2": b, "label": i, "idx": i}
    for i, (a, b) in enumerate(zip(TEXTS, reversed(TEXTS), strict=True))
]


def test_a_reranker_is_pruned_on_a_task_and_stays_one(tmp_path):
    ranker, told = reranker(tmp_path), tmp_path / "told.json"
    assert on_task(ranker, tmp_path, "stsb", SCORED, "--json", told) == 0
    fast = peer.CrossEncoder(str(tmp_path / "out"), device="cpu")
    converted = load(tmp_path / "out")
    assert explain(fast[0].model) == explain(converted)
    assert json.loads(told.read_text())["density"]["heads"] == 0.5
    tokens = fast.tokenizer(TEXTS[:1], TEXTS[-1:], return_tensors="pt")
    with torch.no_grad():
        wanted = converted(**tokens).logits[0]
    got = fast.predict([(TEXTS[0], TEXTS[-1])], activation_fn=nn.Identity())
    assert got == pytest.approx(wanted.numpy(), abs=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from sentence_transformers import CrossEncoder" in card
    assert "| stsb | dense | pruned |" in card


@pytest.mark.parametrize("kind", ["embedder", "other head"])
def test_a_folder_that_would_drop_the_head_is_not_trained(kind, folder, tmp_path, capsys):
    source, told = folder, "a SentenceTransformer in"
    if kind == "other head":
        source, told = reranker(tmp_path), "expected a head with 2 labels, got one with 1"
    rows = [{"sentence": text, "label": i % 2, "idx": i} for i, text in enumerate(TEXTS)]
    assert on_task(source, tmp_path, "sst2", rows) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_says_that_it_needs_us_and_keeps_what_it_needed(folder, tmp_path, monkeypatch):
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings["requirements"] = {"transformers": ">=5"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prune(folder, tmp_path / "out", *MAGNITUDE)
    told = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    requirements = told.pop("requirements")
    assert told == {name: value for name, value in settings.items() if name != "requirements"}
    assert requirements.keys() == {"transformers", "secateurs"}
    assert requirements["secateurs"]["specifier"] == f">={__version__}"
    monkeypatch.setattr("secateurs.__version__", "0.0.1")
    with pytest.raises(ImportError, match=f'pip install -U "secateurs>={__version__}"'):
        peer.SentenceTransformer(str(tmp_path / "out"))


def test_without_us_the_folder_does_not_open(folder, tmp_path):
    prune(folder, tmp_path / "out", *MAGNITUDE)
    settings = tmp_path / "out" / "config_sentence_transformers.json"
    told = json.loads(settings.read_text())
    del told["requirements"]  # as if an old sentence-transformers did not know them
    settings.write_text(json.dumps(told))
    script = "import sys, sentence_transformers as s; s.SentenceTransformer(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert SENTENCE in done.stderr


def test_a_model_of_embeddings_may_begin_a_classifier_that_is_written_elsewhere(folder):
    model = open_classifier(folder, 2)
    assert model.classifier.out_features == 2
    assert torch.equal(
        model.base_model.embeddings.word_embeddings.weight,
        open_model(folder).embeddings.word_embeddings.weight,
    )


def test_a_head_that_embeddings_do_not_use_is_left_out(folder):
    """Trained with a head for masks, and opened without it."""
    torch.manual_seed(0)
    headed = BertForMaskedLM(BertConfig(**SIZES))
    headed.save_pretrained(folder)
    opened = open_model(folder)
    assert type(opened).__name__ == "BertModel"
    wanted = headed.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(opened.encoder.layer[1].output.dense.weight, wanted)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda listed: listed[0].update(path="0_Transformer"), "Transformer at the top"),
        (lambda listed: listed[0].update(type="a.Router"), "at the top of .* got 'a.Router'"),
        (lambda listed: listed[1].update(path="../elsewhere"), "in folders of their own"),
        (lambda listed: listed[1].pop("path"), "modules with a type and a path"),
        (lambda listed: listed.clear(), "modules with a type and a path"),
    ],
)
def test_folders_that_cannot_be_kept_are_refused_before_the_work(
    change, sentence, folder, tmp_path
):
    listed = json.loads((folder / "modules.json").read_text())
    change(listed)
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=sentence):
        other_modules(folder)
    with pytest.raises(CheckpointError, match=sentence):
        open_model(folder)
    assert prune(folder, tmp_path / "out", *MAGNITUDE) == 2
    assert not (tmp_path / "out").exists()
