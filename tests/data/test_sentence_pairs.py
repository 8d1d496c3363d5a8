"""Pairs of sentences with scores: both kinds of file, and what is neither."""

from __future__ import annotations

import json

import pytest

from secateurs.data.sentence_pairs import read_pairs
from secateurs.errors import DataError

LINES = [
    {"sentence1": 'A "plane"', "sentence2": "an air plane", "score": 5.0},
    {"sentence1": "a man", "sentence2": "eats", "score": 0.5},
]
HEAD = "index\tsentence1\tsentence2\tscore"


@pytest.mark.parametrize("score", ["score", "label"])
def test_both_kinds_of_file_give_the_same_pairs(tmp_path, score):
    lines, table = tmp_path / "pairs.jsonl", tmp_path / "pairs.tsv"
    named = [{score if k == "score" else k: v for k, v in row.items()} for row in LINES]
    lines.write_text("\n".join(map(json.dumps, named)))
    rows = "\n".join(f"{i}\t" + "\t".join(map(str, row.values())) for i, row in enumerate(LINES))
    table.write_text(f"{HEAD.replace('score', score)}\n{rows}\n")
    wanted = (['A "plane"', "a man"], ["an air plane", "eats"], [5.0, 0.5])
    assert read_pairs(lines) == read_pairs(table) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a man\teats\t3.0\n",
            "or a tab-separated file with these names in its first line, got 'a",
        ),
        ("sentence1\tsentence2\na\tb\n", "score or label, or a tab-separated"),
        ("", "or a tab-separated file"),
        (f"{HEAD}\n0\ta\tb\n", "expected 4 columns at .*:2, got 3"),
        (f"{HEAD}\n0\ta\tb\thigh\n", "a number as score or label, at .*:2"),
        (f"{HEAD}\n0\ta\tb\tnan\n", "a number as score or label, at .*:2"),
        ('{"sentence1": "a", "sentence2": "b"}', "a number as score or label, at .*:1"),
        ('{"sentence1": "a", "sentence2": 3, "score": 1}', "strings as sentence1 and sentence2"),
        ('{"sentence1": "a", "sentence2": "b", "score": true}', "a number as score or label"),
        ('{"sentence1": "a", "sentence2": "b", "score": 1}\n[1]', "at .*:2, got "),
        ('{"sentence1": "a"', "expected JSON at .*:1"),
        (f"{HEAD}\n0\ta\tb\t1\n1\tc\td\t1\n", "with different scores, got 2 of one score"),
        (f"{HEAD}\n", "with different scores, got 0"),
    ],
)
def test_other_files_are_refused_with_the_line(tmp_path, text, words):
    path = tmp_path / "pairs"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_pairs(path)
