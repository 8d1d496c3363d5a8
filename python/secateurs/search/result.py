"""Compressed: what a search found, and what it tried besides; Found: the same in one precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from secateurs.plan import SparsityPlan
from secateurs.search.meeting import Times
from secateurs.search.precisions import Precision
from secateurs.search.sizes import Size


@dataclass(frozen=True)
class Found:
    """What meets a budget in one precision; `predicted` and `dense` in milliseconds."""

    precision: Precision
    sizes: list[Size]
    plan: SparsityPlan
    times: Times
    predicted: float
    dense: float
    recovered: nn.Module
    model: nn.Module
    distance: float = math.inf


@dataclass(frozen=True)
class Trial:
    """What one precision would give at the time asked for.

    Attributes:
        precision: "float32", "bfloat16", "int8".
        measured: milliseconds of the model found in it, None where there is none.
        distance: of its outputs to those of the dense model, None where there is none.
        refusal: why there is none.
    """

    precision: str
    measured: float | None = None
    distance: float | None = None
    refusal: str | None = None

    def __str__(self) -> str:
        if self.distance is None:
            return f"{self.precision} is left out: {self.refusal}"
        return f"{self.precision} at a distance of {self.distance:.3g} in {self.measured:.3g} ms"


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
        model: converted, to run.
        recovered: the re-fitted dense model in evaluation mode, to go on with under `plan`:
            `apply`, `distill`.
        plan: what goes; its notes say the budget, the precision and why.
        sizes: heads and neurons kept in each layer.
        precision: in which `model` computes: the name of its dtype, or "int8".
        trials: one for each precision that could be chosen.
        asked: the time asked for, in milliseconds, weighted over the shapes.
        predicted: by the table.
        measured: of `model`.
        spread: between the 20th and the 80th percentile of `measured`, in milliseconds.
        stock: of the model as transformers runs it, measured in turns with `model`.
        dense: of the converted model from which nothing is removed, in the same precision.
        distance: between the outputs of `model` and of the dense model on examples that were not
            fitted to, as `Judge` measures it.
        cosine: the mean of the same outputs.
        seconds: that it took.
    """

    model: nn.Module
    recovered: nn.Module
    plan: SparsityPlan
    sizes: tuple[Size, ...]
    precision: str
    trials: tuple[Trial, ...]
    asked: float
    predicted: float
    measured: float
    spread: float
    stock: float
    dense: float
    distance: float
    cosine: float
    seconds: float

    @property
    def speedup(self) -> float:
        """Over the model as transformers runs it."""
        return self.stock / self.measured
