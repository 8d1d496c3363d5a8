"""The times of whole models and of their layers at sizes that these could have, on this machine.

What is measured is the converted model with all its layers at one size, so that kernels, fusion and
caches are those of the model that comes out; of a large model as many layers as no cache holds.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from secateurs.architectures.kept import LayerShape
from secateurs.architectures.sites import Sites, find_sites
from secateurs.data.batches import shown
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.timing import interleave
from secateurs.plan import SparsityPlan
from secateurs.search.precisions import Precision
from secateurs.search.sizes import Size, full_size, heads_kept, neurons_kept, plan_of
from secateurs.shells import shell_of

_FEWEST = 2  # layers that a probe keeps, however large they are
_CACHED = 2**27  # bytes of weights that caches may hold from one call to the next
_AT_ONCE = 2**29  # bytes of probes that may be there together: of small models all are
_ROUNDS = 9  # of all probes, at least
_FULL = 3  # samples of a full size in each round, for every difference depends on it
_SMALLEST, _EVEN = 3, 4  # sizes of a sub-layer that are measured: the smallest, and even shares

Mix = Mapping[Shape, float]
"""Weights of (batch, tokens) shapes: how often each one is called."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds that one layer takes more or less than at its full size.

    Attributes:
        heads: by the number of heads kept; 0 is the layer without its attention.
        neurons: by the number of neurons kept; 0 is the layer without its FFN.
        removed: without both.
    """

    heads: Mapping[int, float]
    neurons: Mapping[int, float]
    removed: float

    def __call__(self, size: Size) -> float:
        """The difference of a size; where both parts are smaller, differences add up."""
        if not size.heads and not size.neurons:
            return self.removed
        return self.heads[size.heads] + self.neurons[size.neurons]


class Measured(NamedTuple):
    """What was measured of a model; attributes as of `LatencyTable`."""

    stock: float
    dense: float
    layers: tuple[LayerTimes, ...]
    spread: float


class _Group(NamedTuple):
    """The layers of one shape, and those that its probes keep: the others are removed there."""

    shape: LayerShape
    members: Sequence[int]
    probed: Sequence[int]


class _Key(NamedTuple):
    """A probe: the number of its group, and what layers keep in it."""

    group: int
    size: Size


def measured_times(
    model: nn.Module,
    sites: Sites,
    mix: Mix,
    precision: Precision,
    seconds: float,
    progress: bool,
) -> Measured:
    """Measure a model, converted to `precision`, and its layers. Args as of `LatencyTable`."""
    ready = precision.copy(model, shares=True)
    base = getattr(ready, "base_model", ready)
    tokens, inner = tokens_of(mix), find_sites(base)
    width = next(ready.parameters()).element_size()
    groups = list(_groups(inner, width))
    plans = {
        _Key(number, size): _probe(inner, group.probed, size)
        for number, group in enumerate(groups)
        for size in _sizes(group.shape)
    }
    parts = _parts(inner, plans, width)
    clock = _Clock(model, mix, seconds / (len(plans) + 2), progress)
    # The converted model, and without its head, which takes as long whatever is removed.
    bodies = [ready] if base is ready else [ready, base]
    whole = [model, *(precision.converted(shell_of(m), SparsityPlan(), tokens) for m in bodies)]
    kept: dict[_Key, nn.Module] = {}  # probes of full sizes, which each part measures again
    shorter: dict[_Key, float] = {}  # than at the full size, in the same part
    times: list[float] = []
    for number, part in enumerate(parts):
        of = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        probes = dict(kept)
        for key in shown(part, len(part), f"convert sizes{of}", progress):
            probes[key] = precision.converted(shell_of(base), plans[key], tokens)
        full = {key.group: key for key in probes if key.size == full_size(groups[key.group].shape)}
        kept = {key: probes[key] for key in full.values()}
        repeats = [1] * len(whole) + [_FULL if key in kept else 1 for key in probes]
        medians = clock([*whole, *probes.values()], repeats, f"measure sizes{of}")
        of_probes = dict(zip(probes, medians[len(whole) :], strict=True))
        if not number:
            times = [*medians[: len(whole)], of_probes[full[0]]]
        shorter |= {key: of_probes[key] - of_probes[full[key.group]] for key in part}
        # A converted model refers to itself: without this the next part would come beside it.
        del probes
        whole.clear()
        gc.collect()
    layers: dict[int, LayerTimes] = {}
    for number, group in enumerate(groups):
        differences = {key.size: ms for key, ms in shorter.items() if key.group == number}
        beyond = len(group.members) - len(group.probed) if len(groups) == 1 else 0
        removed = (times[-1] - times[-2]) / beyond if beyond > 0 else None
        found = _differences(group, differences, removed)
        layers |= dict.fromkeys(group.members, found)
    in_order = tuple(layers[index] for index in range(len(layers)))
    return Measured(times[0], times[1], in_order, clock.spread)


def tokens_of(mix: Mix) -> int:
    """The tokens of the call that counts most."""
    batch, tokens = max(mix, key=lambda shape: mix[shape])
    return batch * tokens


class _Clock:
    """Milliseconds of models, weighted over shapes.

    Args:
        model: whose inputs they take.
        seconds: of sampling one model at one shape, at least.
    """

    def __init__(self, model: nn.Module, mix: Mix, seconds: float, progress: bool) -> None:
        self._model, self._mix, self._seconds, self._progress = model, mix, seconds, progress
        self._spreads: list[np.ndarray] = []  # over medians, `[shapes, models]` of each call

    def __call__(
        self, models: Sequence[nn.Module], repeats: Sequence[int], label: str
    ) -> list[float]:
        """The median of each model, of which a round takes so many samples."""
        device = next(self._model.parameters()).device
        owners = [index for index, count in enumerate(repeats) for _ in range(count)]
        totals, spreads = np.zeros(len(models)), []
        for shape, weight in shown(self._mix.items(), len(self._mix), label, self._progress):
            inputs = token_inputs(self._model, shape)
            calls = [partial(models[owner], **inputs) for owner in owners]
            with torch.inference_mode():
                samples = interleave(
                    calls,
                    device,
                    min_repeats=_ROUNDS,
                    min_time=self._seconds * len(calls),
                )
            pooled: list[list[float]] = [[] for _ in models]
            for owner, taken in zip(owners, samples, strict=True):
                pooled[owner] += taken
            of_shape = np.array([np.quantile(taken, (0.2, 0.5, 0.8)) for taken in pooled])
            totals += weight * of_shape[:, 1]
            spreads.append((of_shape[:, 2] - of_shape[:, 0]) / of_shape[:, 1])
        self._spreads.append(np.array(spreads))
        return [float(total) for total in totals]

    @property
    def spread(self) -> float:
        """Between the 20th and the 80th percentile, over the median, of all that was measured."""
        by_shape = np.median(np.concatenate(self._spreads, axis=1), axis=1)
        return float(np.dot(list(self._mix.values()), by_shape))


def _groups(sites: Sites, width: int) -> Iterator[_Group]:
    """The layers of each shape, of weights that take `width` bytes."""
    members: dict[LayerShape, list[int]] = {}
    for index, shape in enumerate(sites.layers):
        members.setdefault(shape, []).append(index)
    for shape, indices in members.items():
        held = width * sites.keep(SparsityPlan(), indices[0]).parameters()
        probed = max(_FEWEST, -(-_CACHED // max(held, 1)))
        yield _Group(shape, indices, indices[:probed])


def _sizes(shape: LayerShape) -> list[Size]:
    """The full size first, then some that differ from it in one part, and none."""
    full = full_size(shape)
    return [
        full,
        *(Size(kept, full.neurons) for kept in _some(heads_kept(shape)) if kept < full.heads),
        *(Size(full.heads, kept) for kept in _some(neurons_kept(shape)) if kept < full.neurons),
        Size(0, 0),
    ]


def _some(sizes: Sequence[int]) -> list[int]:
    """The sizes that are measured, between which times are straight lines: the smallest, where
    they are least straight, and even shares up to the full one."""
    even = np.linspace(0, len(sizes) - 1, _EVEN + 1).round().astype(int)
    return sorted({*sizes[:_SMALLEST], *(sizes[index] for index in even)})


def _probe(sites: Sites, members: Sequence[int], size: Size) -> SparsityPlan:
    """The plan that leaves only the layers `members`, at `size`."""
    scores = {
        f"layers.{index}.{kind}": torch.arange(float(units))
        for index, shape in enumerate(sites.layers)
        for kind, units in (("heads", shape.heads), ("neurons", shape.neurons))
    }
    sizes = [size if index in members else Size(0, 0) for index in range(len(sites.layers))]
    return plan_of(sites, scores, sizes)


def _parts(sites: Sites, plans: Mapping[_Key, SparsityPlan], width: int) -> list[list[_Key]]:
    """The probes that are measured at a time, in which weights take `width` bytes: together they
    hold no more than the layers of the model, and a small model is measured in one part."""
    total, *held = (
        width * sum(sites.keep(plan, index).parameters() for index in range(len(sites.layers)))
        for plan in (SparsityPlan(), *plans.values())
    )
    parts: list[list[_Key]] = [[]]
    size = total  # the whole converted model is measured in the first part
    for key, weights in zip(plans, held, strict=True):
        if parts[-1] and size + weights > max(total, _AT_ONCE):
            parts.append([])
            size = 0
        parts[-1].append(key)
        size += weights
    return parts


def _differences(group: _Group, ms: Mapping[Size, float], removed: float | None) -> LayerTimes:
    """What one layer takes more than at its full size, by what a probe of each size does. A smaller
    size never counts as slower than a larger one, nor a part as more than the layer: that would be
    noise.

    Args:
        removed: the same of a layer that is gone, by the layers that a probe does not have: what
            all layers take together, however many there are, is no part of it. None: by a probe
            without layers.
    """
    full = full_size(group.shape)
    per_layer = {size: time / len(group.probed) for size, time in ms.items()}
    if removed is None or removed >= 0:
        removed = per_layer[Size(0, 0)]

    def rising(kept: Sequence[int], sizes: Mapping[int, Size]) -> dict[int, float]:
        least, known = 0.0, dict[int, float]()
        for number in sorted(sizes, reverse=True):
            least = min(least, max(removed, per_layer[sizes[number]]))
            known[number] = least
        at = sorted(known)
        between = np.interp(kept, at, [known[number] for number in at])
        return dict(zip(kept, between.tolist(), strict=True))

    in_heads, in_neurons = heads_kept(group.shape), neurons_kept(group.shape)
    heads = rising(in_heads, {kept: Size(kept, full.neurons) for kept in _some(in_heads)})
    neurons = rising(in_neurons, {kept: Size(full.heads, kept) for kept in _some(in_neurons)})
    return LayerTimes(heads, neurons, min(removed, heads[0], neurons[0]))
