"""LatencyTable: the measured time of a layer at every size that it could have, on this machine.

Source: Frantar and Alistarh 2022, "SPDY" (arXiv 2201.13096), and Kurtic et al. 2023, "ZipLM" (arXiv
2302.04089): tables of times instead of counts of operations.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateurs import files
from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import brief, dtype_name
from secateurs.conversion.cost import machine
from secateurs.data.batches import evaluation_mode
from secateurs.errors import DataError, MeasurementError
from secateurs.measurement.inputs import Shape
from secateurs.search.layer_times import LayerTimes, Mix, measured_times
from secateurs.search.precisions import Precision, own
from secateurs.search.sizes import Size

_LOGGER = logging.getLogger(__name__)
_OFF = 0.1  # of the whole, by which times of parts may miss it: little may come out negative
_TRIES = 2  # of a table whose times do not add up
_BUSY = 0.25  # spread of times, over their medians, of a machine that does other work


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
        seconds: float = 20.0,
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
                table = cls(*measured_times(model, sites, mix, precision, seconds, progress))
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
