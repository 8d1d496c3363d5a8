from __future__ import annotations

import json

import pytest

from secateurs.data.text import batches, read_examples, read_text, sentences
from secateurs.errors import DataError


class Words:
    """A tokenizer of whitespace words, padding on the right, as transformers' are called."""

    def __call__(
        self, texts=None, pairs=None, *, text_target=None, padding, truncation, max_length, **_
    ):
        import torch

        texts = text_target if texts is None else texts
        joined = [f"{a} {b}" for a, b in zip(texts, pairs, strict=True)] if pairs else texts
        rows = [[len(word) for word in text.split()][:max_length] for text in joined]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([r + [0] * (width - len(r)) for r in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        }


def write(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    return path


def test_sentences_end_at_stops_but_not_at_abbreviations_or_inside_speech():
    text = (
        "My dear Mr. Bennet has gone away. Mrs. Long and Dr. Grant of St. James came. "
        "\u201cIs that his whole design?\u201d said his lady.\n"
        "It is so! \u201cWe are not in a way to know.\u201d Then she was quite silent."
    )
    assert sentences(text) == [
        "My dear Mr. Bennet has gone away.",
        "Mrs. Long and Dr. Grant of St. James came.",
        "\u201cIs that his whole design?\u201d said his lady.",
        "\u201cWe are not in a way to know.\u201d",
        "Then she was quite silent.",
    ]


def test_a_text_without_sentences_is_refused(tmp_path):
    with pytest.raises(DataError, match="got none"):
        read_text(write(tmp_path, "One two.\n"))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="readable UTF-8 file"):
        read_text(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="readable UTF-8 file"):
        read_text(tmp_path / "binary")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty file"),
        ("{", "expected JSON at"),
        ('{"sentence": "a"}', "string 'text'"),
        ("[1]", "string 'text'"),
        ('{"text": "a", "label": 1}\n{"text": "b"}', "label on all rows or none, got 1 of 2"),
        ('{"text": "a"}\n{"text": "b", "text_pair": "c"}', "text_pair on all rows or none"),
        ('{"text": "a", "target": 3}', "a string as target at"),
        ('{"text": "a", "target": "b", "label": 1}', "a label or a target at .*got both"),
        ('{"text": "a", "target": "b"}\n{"text": "b"}', "target on all rows or none, got 1 of 2"),
    ],
)
def test_bad_examples_are_refused_in_words(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        read_examples(write(tmp_path, text))


def test_batches_gather_similar_lengths_and_keep_labels_with_their_text(tmp_path):
    rows = [{"text": "aa " * n, "text_pair": "b", "label": n} for n in (5, 1, 4, 2, 3)]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n")
    made = batches(Words(), read_examples(path), batch_size=2, max_length=5)
    assert [b["labels"].tolist() for b in made] == [[1, 2], [3, 4], [5]]
    assert [b["attention_mask"].sum(1).tolist() for b in made] == [[2, 3], [4, 5], [5]]


def test_targets_are_what_a_decoder_should_write():
    rows = [{"text": "a b c", "target": "aa"}, {"text": "a b", "target": "b aaa c"}]
    (batch,) = batches(Words(), rows, batch_size=4, max_length=2)
    assert batch["decoder_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[1, 3], [2, -100]]


def test_sentences_make_batches_without_labels():
    (batch,) = batches(Words(), ["a b c d", "a b"], batch_size=4, max_length=9)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"].sum(1).tolist() == [2, 4]
