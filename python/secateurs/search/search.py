"""compress: the smaller model that meets a measured time at the least loss, without training.

Source: the frame is that of Kurtic et al. 2023, "ZipLM" (arXiv 2302.04089): errors of each size of
a layer, measured times, a dynamic programme, a local search over sensitivities (from Frantar and
Alistarh 2022, "SPDY", arXiv 2201.13096). Departures: errors are sums of K-prune's mixed score, or
those of a layer-wise optimal brain surgeon, whichever leaves the model nearer to the dense one;
what stays is re-fitted to the dense model's residual stream (`refit`), already when the search
judges a choice; the time of the result is measured, and the search repeated where it is off; the
precision is chosen too, where that is asked for, by models found for each and judged as they run.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import check_seed, door
from secateurs.conversion.report import SiteReport, conversion_of
from secateurs.data.batches import Batch, check_batches, evaluation_mode
from secateurs.errors import (
    BackendError,
    BudgetError,
    FamilyError,
    MeasurementError,
)
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.quality import fidelity
from secateurs.measurement.timing import interleave
from secateurs.plan import SparsityPlan
from secateurs.processes import from_first
from secateurs.pruning import METHODS, Budget, Pruner
from secateurs.pruning.run import score
from secateurs.reconstruction import refit
from secateurs.search.choices import Choices, Weights
from secateurs.search.examples import some, split
from secateurs.search.latency_table import LatencyTable, mixed, tokens_of
from secateurs.search.local_search import Candidate, best_of
from secateurs.search.meeting import EFFORTS, MARGINS, Times, check_target, limit_of, met
from secateurs.search.precisions import AUTO, Precision, asked_for
from secateurs.search.result import Compressed, Trial
from secateurs.search.sensitivity import Judge, sensitivities
from secateurs.search.sizes import Size
from secateurs.training.distillation import distill

_LOGGER = logging.getLogger(__name__)
_METHODS = ("kprune", "obs")  # that it begins with
_HEADS = (1.0, 1 / 8, 1 / 64)  # weights of heads beside neurons, for losses that add up
_POWERS = (0.0, 0.5, 1.0)  # of sensitivities, for errors of sub-layers
_TRIED = 128  # that each of them is fitted to
_REPEATS, _SECONDS = 11, 2.0  # of measuring a result at one shape, at least
_STEPS, _RATE = 300, 3e-4  # of distillation
_BEHIND = 2.0  # times the least distance so far, at which a precision is given up at a first look
_NOISE = 0.5  # spread of a measurement, over its median, that says nothing any more


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
        precision: in which the result computes: "bfloat16", "int8" (of linears, as of `convert`),
            or "auto": the model's own, bfloat16 or int8, as far as this machine has products for
            them, whichever leaves the outputs nearest to the dense model's within the time. What is
            far behind at a first look is not searched. By default the model's own.
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
    budget = check_target(budget, effort)
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


@dataclass(frozen=True)
class _Way:
    """One precision, what sizes take in it, and how a choice among them may begin."""

    precision: Precision
    table: LatencyTable
    candidates: list[Candidate]


@dataclass(frozen=True)
class _Found:
    """What meets a budget in one way."""

    way: _Way
    sizes: list[Size]
    plan: SparsityPlan
    times: Times
    recovered: nn.Module
    model: nn.Module
    distance: float


class Search:
    """All that is measured of a model once, for any number of budgets. Args as of `compress`."""

    @door
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
        self._tokens = tokens_of(self.mix)
        check_seed(seed)
        judged, self._fitted = split(check_batches(batches))
        sites = find_sites(model).of_one_stack("compress")
        self._precision = precision
        precisions, self._left_out = asked_for(model, precision)
        self._model, self._force, self._seed, self._progress = model, force, seed, progress
        self._recover = partial(refit, model, ridge=ridge, progress=False)
        with evaluation_mode(model):
            tables = self._tables(precisions)
            self._judge = Judge(model, judged)
            candidates: dict[str, list[list[Candidate]]] = {name: [] for name in tables}
            self._methods = _METHODS if method is None else (method,)
            for name in self._methods:
                scores, losses, weights = self._scored(name, sites)
                for way, table in tables.items():
                    choices = Choices(sites, scores, losses, table)
                    candidates[way].append([Candidate(choices, each) for each in weights])
        self._ways = [
            # One of each method first.
            _Way(each, tables[each.name], [*chain(*zip(*candidates[each.name], strict=True))])
            for each in precisions
            if each.name in tables
        ]
        self._seconds = time.perf_counter() - start

    @property
    def table(self) -> LatencyTable:
        """The times in the precision that was asked for, in the model's own where any was."""
        return self._ways[0].table

    def _tables(self, precisions: Sequence[Precision]) -> dict[str, LatencyTable]:
        """Tables by the names of precisions; one in which the model does not run is left out."""
        tables: dict[str, LatencyTable] = {}
        for precision in precisions:
            # One process measures while the others wait: all must decide by the same times.
            measure = partial(
                LatencyTable.measured,
                self._model,
                self.mix,
                precision=precision,
                progress=self._progress,
            )
            try:
                tables[precision.name] = from_first(measure)
            except (BackendError, FamilyError) as error:
                if precision is precisions[0]:
                    raise
                self._left_out[precision.name] = str(error)
        return tables

    def _scored(self, method: str, sites: Sites) -> tuple[dict[str, Tensor], str, list[Weights]]:
        """The scores of a method, its kind of losses, and weights that a search may begin with."""
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
        if pruner.losses == "additive":
            alike: list[Weights] = [[(heads, 1.0)] * len(sites.layers) for heads in _HEADS]
            return scores, pruner.losses, alike
        with torch.no_grad():
            moved = sensitivities(self._model, sites, self._judge, progress=self._progress)
        weights: list[Weights] = [
            [(attention**power, ffn**power) for attention, ffn in moved] for power in _POWERS
        ]
        return scores, pruner.losses, weights

    @door
    def meet(self, budget: Budget | Mapping[str, Any] | str, effort: str = "quick") -> Compressed:
        """What meets a budget of time. Raises as `compress`."""
        start = time.perf_counter()
        budget = check_target(budget, effort)
        with evaluation_mode(self._model):
            found, trials = self._nearest(budget, effort)
            if effort == "long":
                found = self._distilled(found)
            cosine = fidelity(self._model, found.model, self._judge.batches).mean
        precision = found.way.precision.name
        reason = self._reason(trials)
        plan = replace(
            found.plan,
            notes={
                "method": "compress",
                "budget": str(budget),
                "effort": effort,
                "seed": self._seed,
                "precision": precision,
                "why": reason,
            },
        )
        conversion = conversion_of(found.model)
        conversion.plan = plan
        conversion.reports.insert(0, SiteReport("precision", precision, reason))
        return Compressed(
            model=found.model,
            recovered=found.recovered,
            plan=plan,
            sizes=tuple(found.sizes),
            precision=precision,
            trials=tuple(trials),
            asked=limit_of(budget, found.times.stock),
            predicted=found.way.table.predict(found.sizes),
            measured=found.times.ms,
            spread=found.times.spread,
            stock=found.times.stock,
            dense=found.way.table.dense,
            distance=found.distance,
            cosine=cosine,
            seconds=self._seconds + time.perf_counter() - start,
        )

    def _reason(self, trials: Sequence[Trial]) -> str:
        """Why a result is in its precision."""
        if self._precision is None:
            return "the model's own"
        if self._precision != AUTO:
            return "asked for"
        return f"the nearest to the dense model within the time: {'; '.join(map(str, trials))}"

    def _nearest(self, budget: Budget, effort: str) -> tuple[_Found, list[Trial]]:
        """The best of what meets a budget in each precision, and all that was tried."""
        best: _Found | None = None
        trials: list[Trial] = []
        refusals: dict[float, Exception] = {}  # by the least time of each
        # What is fastest as a whole has the least to lose: the others are soon seen to be behind.
        for way in sorted(self._ways, key=lambda way: way.table.dense):
            bar = math.inf if best is None else _BEHIND * best.distance
            try:
                found = self._in_one_way(way, budget, effort, bar)
            except (BudgetError, BackendError, FamilyError) as error:
                trials.append(Trial(way.precision.name, refusal=str(error)))
                refusals[way.table.least] = error
                continue
            if isinstance(found, Trial):
                trials.append(found)
                continue
            trials.append(Trial(way.precision.name, found.times.ms, found.distance))
            if best is None or found.distance < best.distance:
                best = found
        if best is None:
            raise refusals[min(refusals)]
        left_out = [Trial(name, refusal=refusal) for name, refusal in self._left_out.items()]
        return best, trials + left_out

    def _in_one_way(self, way: _Way, budget: Budget, effort: str, bar: float) -> _Found | Trial:
        """What meets a budget in one precision, or why it is not worth a search: it loses more than
        `bar` at a first look."""
        candidate, distance = best_of(
            way.candidates,
            MARGINS[0] * limit_of(budget, way.table.stock),
            partial(self._recover, batches=some(self._fitted, _TRIED)),
            self._judge,
            EFFORTS[effort],
            self._seed,
            self._progress,
            looks=len(self._methods),
            bar=bar,
        )
        if distance > bar:
            reason = f"it is at a distance of {distance:.3g} at a first look"
            return Trial(way.precision.name, refusal=reason)
        sizes, times = met(budget, candidate, way.table, partial(self._timed, way.precision))
        plan = candidate.choices.plan(sizes)
        recovered = self._recover(plan, batches=self._fitted)
        if self._judge.under(recovered, plan) > self._judge.under(self._model, plan):
            _LOGGER.warning(
                "the re-fit is left out: on examples that it does not see, the model is nearer to "
                "the dense one without it; give more data"
            )
            recovered = copy.deepcopy(self._model)
        return self._converted(_Found(way, sizes, plan, times, recovered, recovered, math.inf))

    def _converted(self, found: _Found) -> _Found:
        """The same with its model converted, and judged as it runs."""
        precision = found.way.precision
        model = precision.converted(
            precision.copy(found.recovered), found.plan, self._tokens, self._fitted
        )
        return replace(found, model=model, distance=self._judge(model))

    def _distilled(self, found: _Found) -> _Found:
        recovered = distill(
            found.recovered,
            found.plan,
            self._fitted,
            teacher=self._model,
            steps=_STEPS,
            lr=_RATE,
            seed=self._seed,
            progress=self._progress,
        )
        return self._converted(replace(found, recovered=recovered))

    @door
    def timed(self, plan: SparsityPlan) -> Times:
        """The times of the model that a plan leaves. Raises MeasurementError for noise."""
        with evaluation_mode(self._model):
            return self._timed(self._ways[0].precision, plan)

    def _timed(self, precision: Precision, plan: SparsityPlan) -> Times:
        def measured() -> Times:
            copied = precision.copy(self._model, shares=True)
            return self._times(precision.converted(copied, plan, self._tokens))

        times = from_first(measured)
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
