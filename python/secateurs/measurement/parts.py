"""Where the time of a call goes: layers, the parts of a layer, and what is beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateurs.data.batches import Batch, run
from secateurs.measurement.timing import Timing, alternate, summarised, synchroniser

WHOLE, LAYERS, ELSE = "whole", "layers", "all else"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # never called themselves


@dataclass(frozen=True)
class PartTime:
    """The time of one part of a model in a call.

    Attributes:
        part: `whole`, `layers`, `layers: NAME` for the modules of that name in all layers, the path
            of a module beside the layers, or `all else`: the whole without layers and those.
        modules: how many share the time.
        ms: None where none of them is called as a module.
        share: of the whole.
    """

    part: str
    modules: int
    ms: float | None
    ms_p20: float | None
    ms_p80: float | None
    share: float | None


@torch.inference_mode()
def time_parts(
    model: nn.Module,
    inputs: Batch,
    layers: Sequence[str],
    *,
    min_repeats: int = 5,
    min_time: float = 1.0,
) -> list[PartTime]:
    """Time each part of `model` in calls of its own, in turns with the others and the whole.

    A part is timed by hooks on its modules, in calls in which nothing else is watched. A layer that
    runs as one operation runs part by part while one of them is watched, and layers that run as one
    run one by one: times of parts add up to another sum than the whole.

    Args:
        layers: the paths of the model's layers.
        min_repeats: at least so many samples of each.
        min_time: at least so many seconds in all.
    """
    parts = parts_of(model, layers)
    device = next(model.parameters()).device
    watches = [_Watch(synchroniser(device), modules) for modules in parts.values()]
    samplers = [watch.sampler(lambda: run(model, inputs)) for watch in watches]
    samples = alternate(samplers, min_repeats=min_repeats, min_time=min_time)
    timings = [summarised([taken], device).timing for taken in samples]
    whole = timings[0].ms
    rows = [
        _row(part, len(modules), timing if watch.called else None, whole)
        for (part, modules), timing, watch in zip(parts.items(), timings, watches, strict=True)
    ]
    around = (row.ms or 0.0 for row in rows[1:] if not row.part.startswith(f"{LAYERS}: "))
    rest = whole - sum(around)
    return [*rows[1:], PartTime(ELSE, 0, rest, None, None, rest / whole), rows[0]]


def parts_of(model: nn.Module, layers: Sequence[str]) -> dict[str, list[nn.Module]]:
    """The modules of each part, the whole first: the largest modules beside the layers, the layers,
    and what stands in a layer, by its name there. A module that stands in several places is counted
    once in a part, and once beside the layers."""
    inside: dict[str, dict[nn.Module, None]] = {}
    for path in layers:
        for name, module in _callable_children(model.get_submodule(path)):
            inside.setdefault(f"{LAYERS}: {name}", {})[module] = None
    beside: dict[nn.Module, str] = {}
    for path, module in _beside(model, "", layers):
        beside.setdefault(module, path)
    return {
        WHOLE: [model],
        LAYERS: [model.get_submodule(path) for path in layers],
        **{part: [*modules] for part, modules in inside.items()},
        **{path: [module] for module, path in beside.items()},
    }


class _Watch:
    """A clock that runs while one of some modules is called."""

    def __init__(self, sync: Callable[[], None], modules: Sequence[nn.Module]) -> None:
        self._sync, self._modules = sync, modules
        self._start = self._seconds = 0.0
        self.called = False

    def sampler(self, call: Callable[[], Any]) -> Callable[[], float]:
        """Return a function that takes one sample: the milliseconds in these modules."""

        def sample() -> float:
            with self._hooks():
                call()  # untimed: after hooks came or went, layers bind their tensors anew
                self._seconds = 0.0
                call()
            return self._seconds * 1e3

        return sample

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [
            handle
            for module in self._modules
            for handle in (
                module.register_forward_pre_hook(self._begin),
                module.register_forward_hook(self._end),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *call: Any) -> None:
        self._sync()
        self._start = time.perf_counter()

    def _end(self, *call: Any) -> None:
        self._sync()
        self._seconds += time.perf_counter() - self._start
        self.called = True


def _row(part: str, modules: int, timing: Timing | None, whole: float) -> PartTime:
    if timing is None:
        return PartTime(part, modules, None, None, None, None)
    return PartTime(part, modules, timing.ms, timing.ms_p20, timing.ms_p80, timing.ms / whole)


def _callable_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from ((f"{name}.{inner}", kept) for inner, kept in _callable_children(child))
        else:
            yield name, child


def _beside(module: nn.Module, path: str, layers: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules below `module` that hold no layer and are none."""
    for name, child in module.named_children():
        below = f"{path}{name}"
        if below in layers:
            continue
        holds_layers = any(layer.startswith(f"{below}.") for layer in layers)
        if holds_layers or isinstance(child, _CONTAINERS):
            yield from _beside(child, f"{below}.", layers)
        else:
            yield below, child
