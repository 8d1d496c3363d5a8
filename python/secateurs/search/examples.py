"""Examples: which of them judge, and which are fitted to.

Both are spread over all batches, which may come sorted by length or by anything else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from secateurs.data.batches import Batch, batch_size

_JUDGED = 64  # examples, at most, that choices are judged on


def split(data: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to judge on, a fifth of the examples at most, and batches to fit to; the same where
    there is only one."""
    if len(data) == 1:
        return list(data), list(data)
    judging = set(_spread(data, min(_JUDGED, _size(data) // 5)))
    judged = [batch for place, batch in enumerate(data) if place in judging]
    fitted = [batch for place, batch in enumerate(data) if place not in judging]
    return judged, fitted


def some(data: Sequence[Batch], examples: int) -> list[Batch]:
    """As many of the batches as hold about so many examples, at least one."""
    return [data[place] for place in _spread(data, examples)]


def _spread(data: Sequence[Batch], examples: int) -> list[int]:
    """The places of batches that hold about so many examples, at equal distances."""
    count = min(len(data), max(1, math.ceil(examples * len(data) / _size(data))))
    return [(2 * place + 1) * len(data) // (2 * count) for place in range(count)]


def _size(data: Sequence[Batch]) -> int:
    return sum(map(batch_size, data))
