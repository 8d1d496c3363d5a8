"""Tasks: labelled sentences in files, and what counts as good on them.

A task's files are JSON lines, gzipped or not, with the column names of GLUE on the Hugging Face
hub: `train*.jsonl[.gz]` and `validation*.jsonl[.gz]` (or `heldout*`).
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateurs.checks import first_line
from secateurs.data.text import check_known, tokenized
from secateurs.errors import DataError

Array = NDArray[Any]


def accuracy(predicted: Array, wanted: Array) -> float:
    """Share of equal labels."""
    return float((predicted == wanted).mean())


def f1(predicted: Array, wanted: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where it is never right."""
    right = float(((predicted == 1) & (wanted == 1)).sum())
    either = float((predicted == 1).sum() + (wanted == 1).sum())
    return 2 * right / either if either else 0.0


def matthews(predicted: Array, wanted: Array) -> float:
    """Matthews correlation of two classes; 0 where either side has only one."""
    a, b = predicted.astype(np.float64), wanted.astype(np.float64)
    return pearson(a, b)


def pearson(predicted: Array, wanted: Array) -> float:
    """Correlation of two vectors; 0 where either does not vary."""
    a = predicted.astype(np.float64) - predicted.mean(dtype=np.float64)
    b = wanted.astype(np.float64) - wanted.mean(dtype=np.float64)
    length = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / length if length else 0.0


def spearman(predicted: Array, wanted: Array) -> float:
    """Correlation of ranks; equal values share their mean rank."""
    return pearson(_ranks(predicted), _ranks(wanted))


def _ranks(values: Array) -> Array:
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[index]


@dataclass(frozen=True)
class Task:
    """One task: its text columns, how many labels it has (1: a score), and its metrics, the first
    of which decides."""

    name: str
    columns: tuple[str, ...]
    labels: int
    metrics: Mapping[str, Callable[[Array, Array], float]]

    @property
    def pair(self) -> bool:
        return len(self.columns) == 2

    def evaluate(self, logits: Array, wanted: Array) -> dict[str, float]:
        """Every metric over a whole split: `logits` `[n, labels]` against labels `[n]`."""
        predicted = logits[:, 0] if self.labels == 1 else logits.argmax(-1)
        return {name: metric(predicted, wanted) for name, metric in self.metrics.items()}


_SENTENCES = ("sentence1", "sentence2")
_BOTH = {"f1": f1, "accuracy": accuracy}
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), 2, {"matthews": matthews}),
        Task("sst2", ("sentence",), 2, {"accuracy": accuracy}),
        Task("mrpc", _SENTENCES, 2, _BOTH),
        Task("stsb", _SENTENCES, 1, {"spearman": spearman, "pearson": pearson}),
        Task("qqp", ("question1", "question2"), 2, _BOTH),
        Task("mnli", ("premise", "hypothesis"), 3, {"accuracy": accuracy}),
        Task("qnli", ("question", "sentence"), 2, {"accuracy": accuracy}),
        Task("rte", _SENTENCES, 2, {"accuracy": accuracy}),
        Task("wnli", _SENTENCES, 2, {"accuracy": accuracy}),
    )
}


def find_task(name: str) -> Task:
    """The task of this name. Raises DataError for an unknown one."""
    if name not in TASKS:
        raise DataError(f"expected a task in {', '.join(TASKS)}; got {name!r}")
    return TASKS[name]


def read_split(task: Task, split: str, directory: str | Path | None = None) -> list[dict[str, Any]]:
    """Rows of one split, `train` or `validation`, with `text`, maybe `text_pair`, and `label`.

    Args:
        directory: where the task's files are, or a folder with one folder for each task; None
            reads the task from the hub by `datasets`.

    Raises DataError for a missing file, a malformed row, or a label the task does not have.
    """
    if directory is None:
        return [_row(task, row, f"{task.name} {split}") for row in _from_hub(task, split)]
    path = _file(task, split, Path(directory))
    rows = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_row(task, json.loads(line), f"{path}:{number}"))
    except DataError:
        raise
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"expected JSON lines in {path}, got {first_line(error)}") from error
    if not rows:
        raise DataError(f"expected at least one example in {path}, got none")
    return rows


def encode(
    tokenizer: Any, task: Task, rows: list[dict[str, Any]], max_length: int
) -> list[dict[str, Any]]:
    """Token ids and labels, one dict for each row, not padded."""
    texts = [row["text"] for row in rows]
    pairs = [row["text_pair"] for row in rows] if task.pair else None
    encoded = tokenized(tokenizer, texts, pairs, max_length)
    check_known(tokenizer, encoded["input_ids"])
    examples = []
    for i, row in enumerate(rows):
        example = {name: values[i] for name, values in encoded.items()}
        label = row["label"]
        examples.append({**example, "labels": float(label) if task.labels == 1 else label})
    return examples


def _file(task: Task, split: str, directory: Path) -> Path:
    folder = directory / task.name if (directory / task.name).is_dir() else directory
    starts = ("validation", "heldout") if split == "validation" else (split,)
    found = sorted(
        path
        for start in starts
        for end in ("jsonl", "jsonl.gz")
        for path in folder.glob(f"{start}*.{end}")
    )
    if len(found) != 1:
        raise DataError(
            f"expected one file {starts[0]}*.jsonl or .jsonl.gz of {task.name} in {folder}, got "
            f"{len(found)}"
        )
    return found[0]


def _from_hub(task: Task, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"expected a folder with the files of {task.name}, or the package datasets to fetch it"
        ) from None
    name = f"{split}_matched" if (task.name, split) == ("mnli", "validation") else split
    try:
        return datasets.load_dataset("nyu-mll/glue", task.name, split=name)
    except Exception as error:  # of any of the layers between here and the hub
        raise DataError(f"cannot fetch {task.name} by datasets: {first_line(error)}") from error


def _row(task: Task, row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping) or not all(isinstance(row.get(c), str) for c in task.columns):
        raise DataError(
            f"expected an object with the texts {', '.join(task.columns)} at {where}, got "
            f"{str(row)[:60]}"
        )
    label = row.get("label")
    number = label if isinstance(label, (int, float)) and not isinstance(label, bool) else math.nan
    fits = (task.labels == 1 or number in range(task.labels)) and math.isfinite(number)
    if not fits:
        wanted = "a score" if task.labels == 1 else f"a label from 0 to {task.labels - 1}"
        raise DataError(f"expected {wanted} for {task.name} at {where}, got {label!r}")
    texts = dict(zip(("text", "text_pair"), (row[c] for c in task.columns), strict=False))
    return {**texts, "label": label}
