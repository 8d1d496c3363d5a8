"""Sizes: how many heads and neurons each layer keeps, and the plan that a choice of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.architectures.kept import LayerShape
from secateurs.architectures.sites import Sites
from secateurs.plan import HeadMask, Mask, ModuleMask, NeuronMask, SparsityPlan
from secateurs.pruning.ranking import lowest

_MOST = 16  # sizes of one sub-layer, besides none of it
_MULTIPLE = 32  # of neurons that a size keeps: kernels compute in tiles


class Size(NamedTuple):
    """What one layer keeps. A sub-layer without heads, or without neurons, is gone as a whole."""

    heads: int
    neurons: int


def full_size(shape: LayerShape) -> Size:
    """All that a layer has."""
    return Size(shape.heads, shape.neurons)


def heads_kept(shape: LayerShape) -> list[int]:
    """The numbers of heads that a search may keep in a layer, from 0 to all."""
    return _steps(shape.heads, 1)


def neurons_kept(shape: LayerShape) -> list[int]:
    """The numbers of neurons that a search may keep in a layer, from 0 to all."""
    return _steps(shape.neurons, _MULTIPLE)


def plan_of(sites: Sites, scores: Mapping[str, Tensor], sizes: Sequence[Size]) -> SparsityPlan:
    """The plan in which each layer keeps as many units as its size says, those that score highest.

    Args:
        scores: `layers.I.heads` `[H]` and `layers.I.neurons` `[F]` of every layer.
        sizes: one for each layer.
    """
    masks: dict[str, Mask] = {}
    for index, (shape, size) in enumerate(zip(sites.layers, sizes, strict=True)):
        for kind, kept, of, part, make in (
            ("heads", size.heads, shape.heads, "attention", HeadMask),
            ("neurons", size.neurons, shape.neurons, "ffn", NeuronMask),
        ):
            if not kept:
                masks[f"layers.{index}.{part}"] = ModuleMask(torch.tensor(False))
            elif kept < of:
                name = f"layers.{index}.{kind}"
                (gone,) = lowest([scores[name]], of - kept)
                masks[name] = make(~gone)
    return SparsityPlan(masks, sites.fingerprint())


def _steps(units: int, multiple: int) -> list[int]:
    """Whole multiples up to all of `units`, evenly spread, at most `_MOST` besides none."""
    step = -(-units // _MOST)
    step = -(-step // multiple) * multiple
    return sorted({*range(0, units, step), units})
