"""Examples: which of them judge, and which are fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.data.batches import Batch, batch_size

_JUDGED = 64  # examples, at most, that choices are judged on


def split(data: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to judge on and batches to fit to; the same where there is only one."""
    if len(data) == 1:
        return data, data
    wanted = min(_JUDGED, max(1, sum(map(batch_size, data)) // 5))
    judged: list[Batch] = []
    while len(judged) + 1 < len(data) and sum(map(batch_size, judged)) < wanted:
        judged.append(data[-1 - len(judged)])
    return judged, data[: len(data) - len(judged)]


def first(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """As many of the first batches as hold so many examples, at least one."""
    sizes = np.cumsum([batch_size(batch) for batch in batches])
    return list(batches[: int((sizes < examples).sum()) + 1])
