"""Parts of speech: a class for each word of a sentence, in any language.

Files are JSON lines, gzipped or not: `train*.jsonl[.gz]` and `validation*.jsonl[.gz]` (or `dev*`),
a sentence a line, with its words as `tokens` and the class of each as `upos`, the 17 names of
Universal Dependencies. `upos:en_ewt` is what lies in the folder of that name, or the treebank of
that name on the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateurs.checks import brief
from secateurs.data.base import IGNORED, Rows, TextTask
from secateurs.data.metrics import accuracy
from secateurs.data.task_files import LINES, Row, from_hub, part_of, read_lines, task_folder
from secateurs.data.text import check_known, tokenized
from secateurs.errors import DataError

UPOS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN",
    "PUNCT", "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
_TREEBANKS = "universal-dependencies/universal_dependencies"
_NO_WORD = "_"  # on the hub, of what stands for several words that follow it


@dataclass(frozen=True)
class WordTask(TextTask):
    """A class for each word, learnt and judged at its first piece; words of which a tokenizer makes
    nothing, or that stand beyond the longest text, are neither."""

    classes: tuple[str, ...] = UPOS
    treebank: str = ""

    head = "TokenClassification"

    def read(self, split: str, directory: str | Path | None = None) -> Rows:
        """Rows with `words`, and `labels` by number."""
        if directory is not None:
            folder = task_folder(directory, "upos", self.treebank)
            return read_lines(part_of(folder, split, LINES, self.name), self._row)
        if not self.treebank:
            raise DataError("expected a folder with the files of upos, or a treebank: upos:en_ewt")
        source = {"data_dir": self.treebank, "revision": "refs/convert/parquet", "split": split}
        rows: Any = from_hub(self.name, _TREEBANKS, **source)
        names = getattr(getattr(rows.features["upos"], "feature", None), "names", None)
        return [self._from_hub(row, names, f"{self.name} {split}") for row in rows]

    def encode(self, tokenizer: Any, rows: Rows, max_length: int) -> Rows:
        if not tokenizer.is_fast:
            raise DataError(
                "expected a tokenizer that tells the word of each piece, a fast one, got "
                f"{type(tokenizer).__name__}"
            )
        words = [row["words"] for row in rows]
        encoded = tokenized(tokenizer, words, None, max_length, is_split_into_words=True)
        check_known(tokenizer, encoded["input_ids"])
        examples = []
        for i, row in enumerate(rows):
            places = encoded.word_ids(i)
            labels = [
                IGNORED if word is None or word == before else row["labels"][word]
                for word, before in zip(places, [None, *places], strict=False)
            ]
            example = {name: values[i] for name, values in encoded.items()}
            examples.append({**example, "labels": labels})
        return examples

    def _padded(self, label: Any, width: int, side: str) -> Any:
        padding = [IGNORED] * (width - len(label))
        return [*padding, *label] if side == "left" else [*label, *padding]

    def _row(self, row: Any, where: str) -> Row:
        fits = isinstance(row, Mapping) and all(
            isinstance(row.get(column), list) and row[column] for column in ("tokens", "upos")
        )
        if not fits or not all(isinstance(word, str) and word.strip() for word in row["tokens"]):
            raise DataError(
                f"expected an object with words as tokens and their classes as upos at {where}, "
                f"got {str(row)[:60]}"
            )
        words, classes = row["tokens"], row["upos"]
        if len(words) != len(classes):
            raise DataError(
                f"expected a class for each of {len(words)} words at {where}, got {len(classes)}"
            )
        for name in classes:
            if name not in self.classes:
                raise DataError(
                    f"expected classes out of {', '.join(self.classes)} at {where}, got "
                    f"{brief(name)}"
                )
        return {"words": words, "labels": [self.classes.index(name) for name in classes]}

    def _from_hub(self, row: Any, names: list[str] | None, where: str) -> Row:
        """A row whose classes may be numbers of `names`."""
        classes = [names[c] if names and isinstance(c, int) else c for c in row["upos"]]
        pairs = [
            (word, name)
            for word, name in zip(row["tokens"], classes, strict=True)
            if name != _NO_WORD
        ]
        return self._row({"tokens": [w for w, _ in pairs], "upos": [c for _, c in pairs]}, where)


def word_task(treebank: str = "") -> WordTask:
    """Parts of speech of one treebank, or of what lies in a folder."""
    name = f"upos:{treebank}" if treebank else "upos"
    return WordTask(name, len(UPOS), {"accuracy": accuracy}, treebank=treebank)
