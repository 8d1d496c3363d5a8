"""Parts of speech: words and their pieces, and files as they come."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.training import write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secateurs.data.base import IGNORED
from secateurs.data.tasks import find_task
from secateurs.data.token_classification import UPOS
from secateurs.errors import DataError

ROW = {"tokens": ["houses", "stood", "!"], "upos": ["NOUN", "VERB", "PUNCT"]}


def pieces(side: str = "right") -> PreTrainedTokenizerFast:
    """A tokenizer of word pieces: `houses` is two of them, `stood` three."""
    vocab = ["[PAD]", "[UNK]", "house", "##s", "st", "##oo", "##d", "!", "a"]
    made = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate(vocab)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", padding_side=side
    )


def test_the_label_of_a_word_stands_at_its_first_piece():
    task = find_task("upos")
    rows = [{"words": ROW["tokens"], "labels": [7, 15, 12]}]
    (example,) = task.encode(pieces(), rows, 9)
    assert example["input_ids"] == [2, 3, 4, 5, 6, 7]
    assert example["labels"] == [7, IGNORED, 15, IGNORED, IGNORED, 12]
    (cut,) = task.encode(pieces(), rows, 3)
    assert cut["labels"] == [7, IGNORED, 15]


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_are_padded_as_their_tokens_are(side):
    task, tokenizer = find_task("upos"), pieces(side)
    rows = [{"words": ROW["tokens"], "labels": [7, 15, 12]}, {"words": ["a"], "labels": [5]}]
    batch = task.collate(tokenizer, task.encode(tokenizer, rows, 9))
    first_pieces = torch.isin(batch["input_ids"], torch.tensor([2, 4, 7, 8]))
    assert torch.equal(batch["labels"] != IGNORED, first_pieces)
    assert batch["labels"][1][batch["attention_mask"][1].bool()].tolist() == [5]


def test_words_are_judged_alike_whatever_their_sentences():
    """Micro accuracy: three words of four are right, though of one sentence of two only."""
    logits = np.eye(17)[[7, 15, 12, 0]]
    assert find_task("upos").evaluate(logits, np.array([7, 15, 12, 5])) == {"accuracy": 0.75}


def test_a_language_is_what_lies_in_its_folder(tmp_path):
    write(tmp_path / "en_ewt" / "train.jsonl.gz", [ROW, ROW])
    write(tmp_path / "en_ewt" / "dev.jsonl", [ROW])
    task = find_task("upos:en_ewt")
    assert (len(task.read("train", tmp_path)), len(task.read("validation", tmp_path))) == (2, 1)
    assert find_task("upos").read("validation", tmp_path / "en_ewt") == [
        {"words": ROW["tokens"], "labels": [7, 15, 12]}
    ]
    with pytest.raises(
        DataError, match=r"expected a folder de_gsd .* of upos:de_gsd .*, got en_ewt"
    ):
        find_task("upos:de_gsd").read("train", tmp_path)
    (tmp_path / "en_ewt" / "dev.jsonl").unlink()
    with pytest.raises(DataError, match=r"expected one file validation\*\.jsonl .* got 0"):
        task.read("validation", tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a"]}, "words as tokens and their classes as upos at .*:1"),
        ({"tokens": [], "upos": []}, "words as tokens"),
        ({"tokens": ["a", " "], "upos": ["X", "X"]}, "words as tokens"),
        ({"tokens": "a", "upos": ["X"]}, "words as tokens"),
        ({"tokens": ["a", "b"], "upos": ["X"]}, "a class for each of 2 words at .*:1, got 1"),
        ({"tokens": ["a"], "upos": ["NOUNS"]}, "classes out of ADJ, .*, X at .*:1, got 'NOUNS'"),
        ({"tokens": ["a"], "upos": [3]}, "classes out of .* got 3"),
        ({"sentence": "a", "label": 1}, "words as tokens"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, row, words):
    write(tmp_path / "train.jsonl", [row])
    with pytest.raises(DataError, match=words):
        find_task("upos").read("train", tmp_path)


def test_a_tokenizer_that_knows_no_words_is_refused():
    with pytest.raises(DataError, match="a fast one, got SimpleNamespace"):
        find_task("upos").encode(SimpleNamespace(is_fast=False), [], 9)


def test_the_hub_is_asked_for_a_treebank_and_its_classes_are_named(monkeypatch):
    """A stand-in for `datasets`: classes as numbers, and one token that stands for two others."""
    names = [*reversed(UPOS), "_"]

    class Rows(list):
        features = {"upos": SimpleNamespace(feature=SimpleNamespace(names=names))}  # noqa: RUF012

    def load_dataset(path, *, data_dir, revision, split):
        assert (data_dir, split) == ("fr_gsd", "validation")
        classes = [names.index(name) for name in ("_", "ADP", "DET", "NOUN")]
        return Rows([{"tokens": ["du", "de", "le", "pain"], "upos": classes}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (row,) = find_task("upos:fr_gsd").read("validation")
    assert row == {"words": ["de", "le", "pain"], "labels": [1, 5, 7]}
    with pytest.raises(DataError, match="or a treebank: upos:en_ewt"):
        find_task("upos").read("train")
