"""Pairs of sentences with a score of how alike they are, as STS-B has them: read from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from secateurs.checks import brief
from secateurs.data.text import json_lines, read_utf8
from secateurs.errors import DataError

_SENTENCES = ("sentence1", "sentence2")
_SCORES = ("score", "label")


class SentencePairs(NamedTuple):
    """The sentences of each pair, and its score; larger means more alike."""

    first: list[str]
    second: list[str]
    scores: list[float]


def read_pairs(path: str | Path) -> SentencePairs:
    """Read pairs from JSON lines with `sentence1`, `sentence2` and `score` or `label`, or from a
    tab-separated file whose first line has these names.

    Raises DataError for any other file, with the line that is not as expected, and for one whose
    scores are all the same.
    """
    text = read_utf8(path)
    rows = json_lines(path) if text.lstrip().startswith("{") else _columns(text, path)
    pairs = SentencePairs([], [], [])
    for place, row in rows:
        known = row if isinstance(row, dict) else {}
        score = next((_number(known[name]) for name in _SCORES if name in known), None)
        if score is None or not all(isinstance(known.get(name), str) for name in _SENTENCES):
            raise DataError(
                "expected strings as sentence1 and sentence2, and a number as score or label, at "
                f"{place}, got {brief(row)}"
            )
        pairs.first.append(row["sentence1"])
        pairs.second.append(row["sentence2"])
        pairs.scores.append(score)
    if len(set(pairs.scores)) < 2:
        raise DataError(
            f"expected pairs of sentences with different scores, got {len(pairs.scores)} of one "
            f"score in {path}"
        )
    return pairs


def _columns(text: str, path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a tab-separated file by the names in its first line; quotation marks are text."""
    head, *lines = text.split("\n")
    names = head.split("\t")
    if not set(_SENTENCES) < set(names) or not set(_SCORES) & set(names):
        raise DataError(
            "expected JSON lines with sentence1, sentence2 and score or label, or a tab-separated "
            f"file with these names in its first line, got {brief(head)} in {path}"
        )
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise DataError(
                f"expected {len(names)} columns at {path}:{number}, got {len(cells)} of them"
            )
        yield f"{path}:{number}", dict(zip(names, cells, strict=True))


def _number(value: Any) -> float | None:
    """A finite number, or the text of one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
