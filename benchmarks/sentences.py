"""Real sentences for whole encoders: to take scales from, and to judge agreement on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

from torch import Tensor

from secateurs.data.tasks import find_task
from secateurs.data.text import read_text, tokenized
from secateurs.storage.model_folders import open_tokenizer

CALIBRATION, JUDGED = 300, 128  # sentences

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sentences:
    """Sentences of one text, in the tokens of one model.

    Attributes:
        calibration: of them, scales are taken from.
        judged: others, on which models are compared.
    """

    tokenizer: Any
    calibration: Sequence[str]
    judged: Sequence[str]

    @classmethod
    def read(cls, folder: Any, data_dir: str | None) -> Sentences:
        """SST-2, its training and its validation split, in `data_dir`; without that the first and
        the last sentences of a novel. The tokenizer lies in `folder`."""
        tokenizer = open_tokenizer(folder)
        if data_dir is None:
            lines = novel()
            return cls(tokenizer, lines[:CALIBRATION], lines[-JUDGED:])
        task = find_task("sst2")
        seen, unseen = (
            [row["text"] for row in task.read(split, data_dir)[:most]]
            for split, most in (("train", CALIBRATION), ("validation", JUDGED))
        )
        return cls(tokenizer, seen, unseen)

    def one_by_one(self) -> list[Batch]:
        """The sentences for calibration, one in each batch."""
        return [self._batch([text], 128) for text in self.calibration]

    def of_shape(self, batch: int, tokens: int) -> list[Batch]:
        """The judged sentences in batches of one shape, cut or padded to it."""
        whole = len(self.judged) // batch * batch
        return [
            self._batch(self.judged[start : start + batch], tokens, padding="max_length")
            for start in range(0, whole, batch)
        ]

    def _batch(self, texts: Sequence[str], tokens: int, **options: Any) -> Batch:
        made = tokenized(self.tokenizer, list(texts), None, tokens, return_tensors="pt", **options)
        return {name: made[name] for name in ("input_ids", "attention_mask")}


def novel() -> list[str]:
    """The sentences of a novel."""
    with as_file(files("secateurs") / "data" / "pride_and_prejudice.txt") as path:
        return read_text(path)
