"""Text in, batches out: sentences and JSON lines, tokenised for a transformers model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import DataError

# A sentence ends at a space behind its stop, or behind the quotation mark that closes it; not
# behind an abbreviation, nor before a small letter ("Indeed!" said he).
_QUOTES = "\"'\u2019\u201d"
_END = re.compile(
    rf"(?:(?<=[.!?])|(?<=[.!?][{_QUOTES}]))(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+(?![a-z])"
)


def sentences(text: str, min_words: int = 4) -> list[str]:
    """The sentences of at least `min_words` words, in order; a line break always ends one."""
    found = [part.strip() for line in text.splitlines() for part in _END.split(line)]
    return [s for s in found if len(s.split()) >= min_words]


def read_text(path: str | Path) -> list[str]:
    """The sentences of a UTF-8 text file. Raises DataError if it cannot be read or holds none."""
    found = sentences(_read(path))
    if not found:
        raise DataError(f"expected a text with sentences of four words or more, got none in {path}")
    return found


def read_examples(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file: objects with `text`, maybe `text_pair`, maybe `label`.

    Raises DataError, with the line, if one is anything else; pairs and labels are on all or none.
    """
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"expected JSON at {path}:{number}, got {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(
                f"expected an object with a string 'text' at {path}:{number}, got {line[:60]!r}"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"expected at least one example, got an empty file {path}")
    for key in ("text_pair", "label"):
        having = sum(key in row for row in rows)
        if having not in (0, len(rows)):
            raise DataError(
                f"expected {key} on all rows or none, got {having} of {len(rows)}: {path}"
            )
    return rows


def batches(
    tokenizer: Any, rows: Sequence[str | dict[str, Any]], batch_size: int, max_length: int
) -> list[dict[str, Tensor]]:
    """Padded batches of sentences or examples; similar lengths together keep padding small."""
    examples = [{"text": row} if isinstance(row, str) else row for row in rows]
    examples = sorted(examples, key=lambda e: len(e["text"]) + len(e.get("text_pair", "")))
    made = []
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        pairs = [e["text_pair"] for e in part] if "text_pair" in part[0] else None
        batch = dict(
            tokenizer(
                [e["text"] for e in part],
                pairs,
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        )
        if "label" in part[0]:
            batch["labels"] = torch.tensor([e["label"] for e in part])
        made.append(batch)
    return made


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a readable UTF-8 file, got {error}") from None
