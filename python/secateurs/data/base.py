"""What a task is: labelled examples, how they become batches, and how models are judged by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateurs.data.metrics import Array

IGNORED = -100
"""The label of what is neither learnt nor judged, as transformers has it."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task(ABC):
    """One task.

    Args:
        name: as `find_task` knows it.
        labels: how many classes; 1 for a score.
        metrics: by name, the first of which decides.
    """

    name: str
    labels: int
    metrics: Mapping[str, Callable[[Array, Array], float]]

    head: ClassVar[str]
    """What the names of transformers' classes with a head for the task end in, behind `For`."""
    main_input: ClassVar[str] = "input_ids"
    """The tensor that every batch has."""

    @property
    def pair(self) -> bool:
        """Whether an example is two texts."""
        return False

    @abstractmethod
    def read(self, split: str, directory: str | Path | None = None) -> Rows:
        """Rows of one split, `train` or `validation`, checked.

        Args:
            directory: where the task's files are, or a folder with one folder for each task; None
                reads the task from the hub by `datasets`.

        Raises DataError for a missing file, a malformed row, or a label the task does not have.
        """

    @abstractmethod
    def encode(self, processor: Any, rows: Rows, max_length: int) -> Rows:
        """What the model's tokenizer, or its image processor, makes of rows: plain values, one dict
        for each, with its `labels`; texts of at most `max_length` tokens."""

    @abstractmethod
    def collate(self, processor: Any, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Encoded examples as one batch with `labels`, padded."""

    @abstractmethod
    def decides(self, processor: Any) -> str:
        """Name what of `processor` decides how examples become batches."""

    def evaluate(self, logits: Array, wanted: Array) -> dict[str, float]:
        """Every metric over a whole split: `logits` `[n, labels]` against labels `[n]`."""
        predicted = logits[:, 0] if self.labels == 1 else logits.argmax(-1)
        return {name: metric(predicted, wanted) for name, metric in self.metrics.items()}


class TextTask(Task):
    """A task whose examples are token ids."""

    def decides(self, tokenizer: Any) -> str:
        return repr((tokenizer.pad_token_id, tokenizer.padding_side))

    def collate(self, tokenizer: Any, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        inputs = [{k: v for k, v in example.items() if k != "labels"} for example in examples]
        batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        width, side = batch["input_ids"].shape[1], tokenizer.padding_side
        labels = [self._padded(example["labels"], width, side) for example in examples]
        return {**batch, "labels": torch.tensor(labels)}

    def _padded(self, label: Any, width: int, side: str) -> Any:
        """A label as a batch of `width` tokens holds it."""
        return label
