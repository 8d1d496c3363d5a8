"""What counts as good on a task: metrics of predictions against labels, over a whole split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
