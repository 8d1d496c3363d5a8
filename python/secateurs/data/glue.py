"""The tasks of GLUE: labelled sentences, or pairs of them.

A task's files are JSON lines, gzipped or not, with the column names of GLUE on the Hugging Face
hub: `train*.jsonl[.gz]` and `validation*.jsonl[.gz]` (or `heldout*`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateurs.data.base import Rows, TextTask
from secateurs.data.metrics import accuracy, f1, matthews, pearson, spearman
from secateurs.data.task_files import LINES, Row, from_hub, part_of, read_lines, task_folder
from secateurs.data.text import check_known, tokenized
from secateurs.errors import DataError


@dataclass(frozen=True)
class SentenceTask(TextTask):
    """One label, or one score, for one or two text `columns`."""

    columns: tuple[str, ...]

    head = "SequenceClassification"

    @property
    def pair(self) -> bool:
        return len(self.columns) == 2

    def read(self, split: str, directory: str | Path | None = None) -> Rows:
        """Rows with `text`, maybe `text_pair`, and `label`."""
        if directory is None:
            name = f"{split}_matched" if (self.name, split) == ("mnli", "validation") else split
            rows = from_hub(self.name, "nyu-mll/glue", self.name, split=name)
            return [self._row(row, f"{self.name} {split}") for row in rows]
        folder = task_folder(directory, self.name)
        return read_lines(part_of(folder, split, LINES, self.name), self._row)

    def encode(self, tokenizer: Any, rows: Rows, max_length: int) -> Rows:
        texts = [row["text"] for row in rows]
        pairs = [row["text_pair"] for row in rows] if self.pair else None
        encoded = tokenized(tokenizer, texts, pairs, max_length)
        check_known(tokenizer, encoded["input_ids"])
        examples = []
        for i, row in enumerate(rows):
            example = {name: values[i] for name, values in encoded.items()}
            label = row["label"]
            examples.append({**example, "labels": float(label) if self.labels == 1 else label})
        return examples

    def _row(self, row: Any, where: str) -> Row:
        if not isinstance(row, Mapping) or not all(
            isinstance(row.get(column), str) for column in self.columns
        ):
            raise DataError(
                f"expected an object with the texts {', '.join(self.columns)} at {where}, got "
                f"{str(row)[:60]}"
            )
        label = row.get("label")
        number = (
            label if isinstance(label, (int, float)) and not isinstance(label, bool) else math.nan
        )
        fits = (self.labels == 1 or number in range(self.labels)) and math.isfinite(number)
        if not fits:
            wanted = "a score" if self.labels == 1 else f"a label from 0 to {self.labels - 1}"
            raise DataError(f"expected {wanted} for {self.name} at {where}, got {label!r}")
        texts = dict(zip(("text", "text_pair"), (row[c] for c in self.columns), strict=False))
        return {**texts, "label": label}


_SENTENCES = ("sentence1", "sentence2")
_ACCURACY = {"accuracy": accuracy}
_BOTH = {"f1": f1, **_ACCURACY}
TASKS: dict[str, SentenceTask] = {
    task.name: task
    for task in (
        SentenceTask("cola", 2, {"matthews": matthews}, ("sentence",)),
        SentenceTask("sst2", 2, _ACCURACY, ("sentence",)),
        SentenceTask("mrpc", 2, _BOTH, _SENTENCES),
        SentenceTask("stsb", 1, {"spearman": spearman, "pearson": pearson}, _SENTENCES),
        SentenceTask("qqp", 2, _BOTH, ("question1", "question2")),
        SentenceTask("mnli", 3, _ACCURACY, ("premise", "hypothesis")),
        SentenceTask("qnli", 2, _ACCURACY, ("question", "sentence")),
        SentenceTask("rte", 2, _ACCURACY, _SENTENCES),
        SentenceTask("wnli", 2, _ACCURACY, _SENTENCES),
    )
}
