"""LatencyTable: the measured time of a layer at every size that it could have, on this machine.

Source: Frantar and Alistarh 2022, "SPDY" (arXiv 2201.13096), and Kurtic et al. 2023, "ZipLM" (arXiv
2302.04089): tables of times instead of counts of operations. Departure: what is measured is the
converted model with only a few layers left, so that kernels, fusion and caches are those of
the model that comes out.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs import files
from secateurs.architectures.kept import LayerShape
from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import brief, dtype_name
from secateurs.conversion.cost import machine
from secateurs.data.batches import evaluation_mode, shown
from secateurs.errors import DataError, MeasurementError
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.timing import interleave
from secateurs.plan import SparsityPlan
from secateurs.search.precisions import Precision, own
from secateurs.search.sizes import Size, full_size, heads_kept, neurons_kept, plan_of
from secateurs.shells import shell_of

_LOGGER = logging.getLogger(__name__)
_LAYERS = 2  # that a probe keeps: weights of one alone would never leave the caches
_ROUNDS = 9  # of all probes, at least
_OFF = 0.1  # of the whole, by which times of parts may miss it: little may come out negative
_TRIES = 2  # of a table whose times do not add up
_AT_ONCE = 2**28  # bytes of probes that may be there together: of small models all are
_BUSY = 0.25  # spread of times, over their medians, of a machine that does other work

_Key = tuple[int, Size]  # of a probe: the number of its kind of layers, and what they keep
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


@dataclass(frozen=True)
class LatencyTable:
    """Times of a model on this machine, in milliseconds, weighted over shapes.

    Attributes:
        stock: of the model as transformers runs it.
        dense: of the converted model from which nothing is removed.
        layers: one for each layer.
        spread: between the 20th and the 80th percentile of a time, over its median; the median of
            all that were measured.
    """

    stock: float
    dense: float
    layers: tuple[LayerTimes, ...]
    spread: float = 0.0

    def predict(self, sizes: Sequence[Size]) -> float:
        """The time of the model whose layers have these sizes."""
        return self.dense + sum(times(size) for times, size in zip(self.layers, sizes, strict=True))

    @property
    def least(self) -> float:
        """The time of the model without its layers."""
        return self.predict([Size(0, 0)] * len(self.layers))

    @classmethod
    def measured(
        cls,
        model: nn.Module,
        mix: Mix,
        *,
        precision: Precision | None = None,
        seconds: float = 15.0,
        progress: bool = True,
    ) -> LatencyTable:
        """Measure a table, or read the one that was measured before for the same sizes, shapes,
        dtype, threads and versions on this machine. One of a busy minute is not kept for later.

        Args:
            model: a transformers model of a supported family; not changed.
            mix: weights of shapes; they add up to 1.
            precision: of the converted models; by default the model's own.
            seconds: of sampling for each shape, at least.

        Raises MeasurementError for times that cannot be, on a machine that does other work.
        """
        sites = find_sites(model).of_one_stack("a table of times")
        precision = precision or own(model)
        path = _path(model, sites, mix, precision)
        kept = _read(files.read_table(path), len(sites.layers))
        if kept is not None:
            return kept
        with evaluation_mode(model):
            for _ in range(_TRIES):
                table = _measure(model, sites, mix, precision, seconds, progress)
                if table.least >= -_OFF * table.dense:
                    break
            else:
                raise MeasurementError(
                    f"expected times that add up, got {table.least:.3g} ms for the model without "
                    "its layers: the machine is too busy with other work"
                )
        if table.spread > _BUSY:
            _LOGGER.warning(
                "the times of layers spread by %.0f %%: this machine does other work; what they "
                "predict may be off, and they are not kept",
                100 * table.spread,
            )
        else:
            files.write_table(path, asdict(table))
        return table


def mixed(shapes: Mapping[Shape, float] | Sequence[Shape]) -> dict[Shape, float]:
    """Weights of shapes that add up to 1. Raises DataError for none, or a weight that is not
    above 0."""
    weights = dict(shapes) if isinstance(shapes, Mapping) else dict.fromkeys(shapes, 1.0)
    if not weights or not all(0 < weight < math.inf for weight in weights.values()):
        raise DataError(
            f"expected shapes with weights above 0, got {brief(dict(weights) or shapes)}"
        )
    total = sum(weights.values())
    return {shape: weight / total for shape, weight in weights.items()}


def tokens_of(mix: Mix) -> int:
    """The tokens of the call that counts most."""
    batch, tokens = max(mix, key=lambda shape: mix[shape])
    return batch * tokens


def _path(model: nn.Module, sites: Sites, mix: Mix, precision: Precision) -> Path | None:
    folder = files.cache_folder()
    weight = next(model.parameters())
    parts = (
        machine(weight.device),
        dtype_name(weight.dtype),
        sites.fingerprint(),
        sorted(mix.items()),
        precision.name,
    )
    name = hashlib.sha256(repr((type(model).__name__, *parts)).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"latency-{name}.json"


def _read(content: Mapping[str, Any], layers: int) -> LatencyTable | None:
    """The table that a file holds, None for one that is damaged: it saves time and nothing else."""
    try:
        times = tuple(
            LayerTimes(
                {int(kept): float(ms) for kept, ms in layer["heads"].items()},
                {int(kept): float(ms) for kept, ms in layer["neurons"].items()},
                float(layer["removed"]),
            )
            for layer in content["layers"]
        )
        stock, dense, spread = (float(content[name]) for name in ("stock", "dense", "spread"))
        table = LatencyTable(stock, dense, times, spread)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return table if len(times) == layers else None


def _measure(
    model: nn.Module,
    sites: Sites,
    mix: Mix,
    precision: Precision,
    seconds: float,
    progress: bool,
) -> LatencyTable:
    ready = precision.copy(model, shares=True)
    base = getattr(ready, "base_model", ready)
    shapes: dict[LayerShape, list[int]] = {}
    for index, shape in enumerate(sites.layers):
        shapes.setdefault(shape, []).append(index)
    tokens, inner = tokens_of(mix), find_sites(base)
    plans = {
        (group, size): _probe(inner, members[:_LAYERS], size)
        for group, (shape, members) in enumerate(shapes.items())
        for size in _probed(shape)
    }
    full = [full_size(shape) for shape in shapes]
    parts = _parts(inner, plans, next(ready.parameters()).element_size())
    kept: dict[_Key, nn.Module] = {}  # probes of the full sizes, which each part measures again
    ms: dict[_Key, float] = {}  # more than at the full size, in the same part
    # The converted model, and without its head, which takes as long whatever is removed.
    bodies = [ready] if base is ready else [ready, base]
    whole, shortened, spreads = list[float](), 0.0, []
    for number, part in enumerate(parts):
        probes: dict[_Key, nn.Module] = {key: kept[key] for key in kept if key not in part}
        of = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        for key in shown(part, len(part), f"convert sizes{of}", progress):
            probes[key] = precision.converted(shell_of(base), plans[key], tokens)
        kept |= {key: probe for key, probe in probes.items() if key[1] == full[key[0]]}
        models, wholes = list(probes.values()), [model]
        if not number:
            wholes += [precision.converted(shell_of(m), SparsityPlan(), tokens) for m in bodies]
            models = [*wholes, *models]
        share = seconds * len(models) / (len(plans) + 2)
        medians, spread = _sampled(model, models, mix, share, f"measure sizes{of}", progress)
        spreads.append(spread)
        if not number:
            whole, medians = medians[: len(wholes)], medians[len(wholes) :]
        times = dict(zip(probes, medians, strict=True))
        if not number:
            shortened = times[0, full[0]]
        ms |= {key: times[key] - times[key[0], full[key[0]]] for key in part}
        # A converted model refers to itself: without this the next part would come beside it.
        del models, probes, wholes
        gc.collect()
    layers: dict[int, LayerTimes] = {}
    for group, (shape, members) in enumerate(shapes.items()):
        of_group = {size: time for (number, size), time in ms.items() if number == group}
        beyond = len(members) - _LAYERS if len(shapes) == 1 else 0
        removed = (shortened - whole[-1]) / beyond if beyond > 0 else None
        layers |= dict.fromkeys(members, _differences(shape, of_group, len(members), removed))
    in_order = tuple(layers[index] for index in range(len(layers)))
    by_shape = np.median(np.concatenate(spreads, axis=1), axis=1)
    spread_of_all = float(np.dot(list(mix.values()), by_shape))
    return LatencyTable(whole[0], whole[1], in_order, spread_of_all)


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


def _sampled(
    model: nn.Module,
    models: Sequence[nn.Module],
    mix: Mix,
    seconds: float,
    label: str,
    progress: bool,
) -> tuple[list[float], np.ndarray]:
    """Milliseconds of each of `models`, weighted over shapes, and spreads over medians `[shapes,
    models]`."""
    medians, device, spreads = np.zeros(len(models)), next(model.parameters()).device, []
    for shape, weight in shown(mix.items(), len(mix), label, progress):
        inputs = token_inputs(model, shape)
        calls = [partial(run, **inputs) for run in models]
        with torch.inference_mode():
            samples = interleave(calls, device, min_repeats=_ROUNDS, min_time=seconds)
        low, middle, high = np.quantile(samples, (0.2, 0.5, 0.8), axis=1)
        medians += weight * middle
        spreads.append((high - low) / middle)
    return medians.tolist(), np.array(spreads)


def _probed(shape: LayerShape) -> list[Size]:
    """The full size first, then each that differs from it in one part, and none."""
    full = full_size(shape)
    return [
        full,
        *(Size(kept, full.neurons) for kept in heads_kept(shape)[:-1]),
        *(Size(full.heads, kept) for kept in neurons_kept(shape)[:-1]),
        Size(0, 0),
    ]


def _probe(sites: Sites, members: Sequence[int], size: Size) -> SparsityPlan:
    """The plan that leaves only the layers `members`, at `size`."""
    scores = {
        f"layers.{index}.{kind}": torch.arange(float(units))
        for index, shape in enumerate(sites.layers)
        for kind, units in (("heads", shape.heads), ("neurons", shape.neurons))
    }
    sizes = [size if index in members else Size(0, 0) for index, shape in enumerate(sites.layers)]
    return plan_of(sites, scores, sizes)


def _differences(
    shape: LayerShape, ms: Mapping[Size, float], members: int, removed: float | None
) -> LayerTimes:
    """What one layer takes more than at its full size, by what a probe of each size does. A smaller
    size never counts as slower than a larger one, nor a part as more than the layer: that would be
    noise.

    Args:
        removed: the same of a layer that is gone, by the layers that a probe does not have: what
            all layers take together, however many there are, is no part of it. None: by a probe
            without layers.
    """
    full, probed = full_size(shape), min(members, _LAYERS)
    per_layer = {size: time / probed for size, time in ms.items()}
    if removed is None or removed >= 0:
        removed = per_layer[Size(0, 0)]

    def rising(sizes: Mapping[int, Size]) -> dict[int, float]:
        times, least = {}, 0.0
        for kept in sorted(sizes, reverse=True):
            least = min(least, max(removed, per_layer[sizes[kept]]))
            times[kept] = least
        return times

    heads = rising({kept: Size(kept, full.neurons) for kept in heads_kept(shape)})
    neurons = rising({kept: Size(full.heads, kept) for kept in neurons_kept(shape)})
    return LayerTimes(heads, neurons, min(removed, heads[0], neurons[0]))
