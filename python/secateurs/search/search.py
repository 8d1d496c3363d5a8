"""compress: the smaller model that meets a measured time at the least loss, without training.

Source: the frame is that of Kurtic et al. 2023, "ZipLM" (arXiv 2302.04089): errors of each size of
a layer, measured times, a dynamic programme, a local search over sensitivities (from Frantar and
Alistarh 2022, "SPDY", arXiv 2201.13096). Departures: errors are sums of K-prune's mixed score, or
those of a layer-wise optimal brain surgeon, whichever leaves the model nearer to the dense one;
what stays is re-fitted to the dense model's residual stream (`refit`), already when the search
judges a choice; the time of the result is measured, and the search repeated where it is off.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import brief, check_seed, door
from secateurs.conversion.builder import convert
from secateurs.data.batches import Batch, batch_size, check_batches, evaluating
from secateurs.errors import BudgetError, DataError, MeasurementError, MethodError
from secateurs.masking.masked_model import apply
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.quality import fidelity
from secateurs.measurement.timing import interleave
from secateurs.plan import SparsityPlan
from secateurs.processes import from_first
from secateurs.pruning import METHODS, Budget, Pruner
from secateurs.pruning.run import score
from secateurs.reconstruction import refit
from secateurs.search.choices import Choices, Weights
from secateurs.search.latency_table import LatencyTable
from secateurs.search.local_search import Candidate, best_of
from secateurs.search.sensitivity import Judge, sensitivities
from secateurs.search.sizes import Size
from secateurs.training.distillation import distill

_LOGGER = logging.getLogger(__name__)
EFFORTS = {"quick": 0, "normal": 24, "long": 24}
"""Choices that a search tries beside those it begins with."""
_METHODS = ("kprune", "obs")  # that it begins with
_HEADS = (1.0, 1 / 8, 1 / 64)  # weights of heads beside neurons, for losses that add up
_POWERS = (0.0, 0.5, 1.0)  # of sensitivities, for errors of sub-layers
_JUDGED = 64  # examples, at most, that choices are judged on
_TRIED = 128  # that each of them is fitted to
_TOLERANCE = 0.05  # of the time asked for, below which a result is not searched again
# Of the limit, at which to aim, round by round: half of all measurements lie above their median.
_MARGINS = (0.99, 0.98, 0.96, 0.94, 0.92)
_REPEATS, _SECONDS = 11, 2.0  # of measuring a result at one shape, at least
_STEPS, _RATE = 300, 3e-4  # of distillation
_NOISE = 0.5  # spread of a measurement, over its median, that says nothing any more


@dataclass(frozen=True)
class Compressed:
    """What `compress` found.

    Attributes:
        model: converted, to run.
        recovered: the re-fitted dense model, to go on with under `plan`: `apply`, `distill`.
        plan: what goes.
        sizes: heads and neurons kept in each layer.
        asked: the time asked for, in milliseconds, weighted over the shapes.
        predicted: by the table.
        measured: of `model`.
        spread: between the 20th and the 80th percentile of `measured`, in milliseconds.
        stock: of the model as transformers runs it, measured in turns with `model`.
        dense: of the converted model from which nothing is removed.
        distance: between the outputs of `recovered` under `plan` and of the dense model on examples
            that were not fitted to, as `Judge` measures it.
        cosine: the mean of the same outputs, those of `model`.
        seconds: that it took.
    """

    model: nn.Module
    recovered: nn.Module
    plan: SparsityPlan
    sizes: tuple[Size, ...]
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


@door
def compress(
    model: nn.Module,
    batches: Iterable[Batch],
    budget: Budget | Mapping[str, Any] | str,
    *,
    shapes: Mapping[Shape, float] | Sequence[Shape] = ((8, 128),),
    effort: str = "quick",
    method: str | None = None,
    precision: str | None = None,
    ridge: float = 0.01,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Compressed:
    """Find what `model` can lose to meet a time on this machine, re-fit what stays, convert it and
    measure it. Neither labels nor training, but for `effort="long"`.

    Args:
        model: a transformers model of a supported family, on the device and in the dtype it will
            run in; not changed.
        batches: dicts of tensors as the model takes them, some hundred examples; labels are left
            out. A fifth of them, 64 examples at most, judge and are not fitted to.
        budget: `Budget(latency="4ms")` or `Budget(speedup=3)`, which is over the model as
            transformers runs it; or the same as a dict, or as text.
        shapes: (batch, tokens) pairs that the time is for, or weights of such pairs.
        effort: "quick" takes the best of six choices, "normal" tries 24 others, "long" also
            distils.
        method: of METHODS, for heads and neurons, that says in which order units go; None takes
            what is better of `kprune` and `obs`.
        precision: of `convert`, which all times are of.
        ridge: of `refit`.
        seed: of the other choices and of the distillation.
        force: go on where the machine is too noisy for its times to be trusted.
        progress: show progress bars.

    Raises:
        BudgetError: a budget of fractions, or a time that is out of reach; the sentence names the
            nearest one.
        MeasurementError: a machine that is too noisy.
        MethodError, DataError, FamilyError, PlanError: as of `prune` and `refit`.
    """
    budget = Budget.of(budget)
    if not budget.is_timed:
        raise BudgetError(f"expected a budget of latency or speedup, got {budget}: see `prune`")
    check_effort(effort)
    search = Search(
        model,
        batches,
        shapes=shapes,
        method=method,
        precision=precision,
        ridge=ridge,
        seed=seed,
        force=force,
        progress=progress,
    )
    return search.meet(budget, effort)


def check_effort(effort: str) -> None:
    """Raise MethodError for an effort that is not one of EFFORTS."""
    if effort not in EFFORTS:
        raise MethodError(f"expected an effort in {', '.join(EFFORTS)}, got {effort!r}")


class Search:
    """All that is measured of a model once, for any number of budgets. Args as of `compress`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        shapes: Mapping[Shape, float] | Sequence[Shape] = ((8, 128),),
        method: str | None = None,
        precision: str | None = None,
        ridge: float = 0.01,
        seed: int = 0,
        force: bool = False,
        progress: bool = True,
    ) -> None:
        start = time.perf_counter()
        self.mix = mixed(shapes)
        self._convert = partial(convert, tokens=_tokens(self.mix), precision=precision)
        check_seed(seed)
        judged, self._fitted = _split(check_batches(batches))
        sites = find_sites(model).of_one_stack("compress")
        self._model, self._force, self._seed, self._progress = model, force, seed, progress
        model.eval()
        # One process measures while the others wait: all must decide by the same times.
        self.table = from_first(
            lambda: LatencyTable.measured(model, self.mix, precision=precision, progress=progress)
        )
        with evaluating(model), torch.no_grad():
            self._judge = Judge(model, judged)
        self._candidates: list[Candidate] = []
        for name in _METHODS if method is None else (method,):
            self._candidates += self._of_method(name, sites)
        self._recover = partial(refit, model, ridge=ridge, progress=False)
        self._seconds = time.perf_counter() - start

    def _of_method(self, method: str, sites: Sites) -> list[Candidate]:
        """What the scores of a method may begin the search with."""
        pruner = METHODS[method].pruner if method in METHODS else Pruner  # which `score` refuses
        scores = score(
            self._model,
            self._fitted,
            method=method,
            budget=Budget(heads=0.5, neurons=0.5),
            seed=self._seed,
            progress=self._progress,
            **pruner.loss_options,
        )
        choices, count = Choices(sites, scores, pruner.losses, self.table), len(sites.layers)
        if pruner.losses == "additive":
            return [Candidate(choices, [(heads, 1.0)] * count) for heads in _HEADS]
        with evaluating(self._model), torch.no_grad():
            moved = sensitivities(self._model, sites, self._judge, progress=self._progress)
        return [
            Candidate(choices, [(attention**power, ffn**power) for attention, ffn in moved])
            for power in _POWERS
        ]

    def meet(self, budget: Budget, effort: str = "quick") -> Compressed:
        """What meets a budget of time. Raises as `compress`."""
        start = time.perf_counter()
        limit = _MARGINS[0] * _limit(budget, self.table.stock)
        choices, weights = best_of(
            self._candidates,
            limit,
            partial(self._recover, batches=first(self._fitted, _TRIED)),
            self._judge,
            EFFORTS[effort],
            self._seed,
            self._progress,
        )
        sizes, times = self._found(budget, choices, weights)
        plan = choices.plan(sizes)
        recovered = self._recover(plan, batches=self._fitted)
        distance = self._judge(apply(recovered, plan))
        if distance > (unfitted := self._judge(apply(self._model, plan))):
            _LOGGER.warning(
                "the re-fit is left out: on examples that it does not see, the model is nearer to "
                "the dense one without it; give more data"
            )
            recovered, distance = copy.deepcopy(self._model), unfitted
        if effort == "long":
            recovered = distill(
                recovered,
                plan,
                self._fitted,
                teacher=self._model,
                steps=_STEPS,
                lr=_RATE,
                seed=self._seed,
                progress=self._progress,
            )
            distance = self._judge(apply(recovered, plan))
        fast = self._convert(recovered, plan)
        return Compressed(
            model=fast,
            recovered=recovered,
            plan=plan,
            sizes=tuple(sizes),
            asked=_limit(budget, times.stock),
            predicted=self.table.predict(sizes),
            measured=times.ms,
            spread=times.spread,
            stock=times.stock,
            dense=self.table.dense,
            distance=distance,
            cosine=fidelity(self._model, fast, self._judge.batches).mean,
            seconds=self._seconds + time.perf_counter() - start,
        )

    def _found(
        self, budget: Budget, choices: Choices, weights: Weights
    ) -> tuple[list[Size], Times]:
        """The sizes of least error whose measured time meets the budget.

        Raises BudgetError where none of some rounds meets it, MeasurementError for times that vary
        too much.
        """
        table = self.table
        ratio, met = 1.0, None
        tried: dict[tuple[Size, ...], Times] = {}
        for margin in _MARGINS:
            try:
                limit = margin * _limit(budget, table.stock) / ratio
                sizes = choices.of_least_error(limit, weights)
            except BudgetError:
                if not tried:
                    raise
                break
            if tuple(sizes) in tried:
                break
            times = tried[tuple(sizes)] = self.timed(choices.plan(sizes))
            allowed = _limit(budget, times.stock)
            if times.ms <= allowed and (met is None or times.ms > met[1].ms):
                met = sizes, times
            if (1 - _TOLERANCE) * allowed <= times.ms <= allowed or choices.is_whole(sizes):
                break
            # How far the prediction is off, each relative to what was allowed when it was made.
            ratio = times.ms / allowed / (table.predict(sizes) / _limit(budget, table.stock))
        if met is None:
            nearest = min(tried.values(), key=lambda times: times.ms / times.stock)
            raise BudgetError(
                f"expected {budget} to be met, got {nearest.ms:.3g} ms, "
                f"{nearest.stock / nearest.ms:.3g} times as fast as it is, as the nearest measured"
            )
        return met

    def timed(self, plan: SparsityPlan) -> Times:
        """The times of the model that a plan leaves. Raises MeasurementError for noise."""
        times = from_first(lambda: self._times(self._convert(self._model, plan)))
        if times.spread > _NOISE * times.ms and not self._force:
            raise MeasurementError(
                f"expected times that can be trusted, got {times.ms:.3g} ms with a spread of "
                f"{times.spread:.3g} ms: free the machine, or force the search to go on"
            )
        return times

    def _times(self, fast: nn.Module) -> Times:
        """Medians and spread of a converted model, weighted over shapes."""
        device = next(self._model.parameters()).device
        totals = np.zeros(3)
        for shape, weight in self.mix.items():
            inputs = token_inputs(self._model, shape)
            calls = [partial(model, **inputs) for model in (fast, self._model)]
            with torch.inference_mode():
                ours, stock = interleave(calls, device, min_repeats=_REPEATS, min_time=_SECONDS)
            low, high = np.quantile(ours, (0.2, 0.8))
            totals += weight * np.array([np.median(ours), high - low, np.median(stock)])
        return Times(*map(float, totals))


@dataclass(frozen=True)
class Times:
    """Milliseconds of a converted model and of the stock one, measured in turns."""

    ms: float
    spread: float
    stock: float


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


def _split(data: list[Batch]) -> tuple[list[Batch], list[Batch]]:
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


def _limit(budget: Budget, stock: float) -> float:
    """The milliseconds that a budget allows."""
    if budget.speedup is not None:
        return stock / budget.speedup
    assert isinstance(budget.latency, float)
    return budget.latency


def _tokens(mix: Mapping[Shape, float]) -> int:
    """The tokens of the call that counts most."""
    batch, tokens = max(mix, key=lambda shape: mix[shape])
    return batch * tokens
