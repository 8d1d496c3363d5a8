"""Search: what a model takes and loses at every size, measured once, and what meets a budget of
time by it.

What meets the time with nothing removed is measured first; else sizes are searched.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.architectures.sites import find_sites
from secateurs.checks import check_seed, door
from secateurs.conversion.report import SiteReport, conversion_of
from secateurs.data.batches import Batch, check_batches, evaluation_mode
from secateurs.errors import BackendError, BudgetError, FamilyError, MeasurementError
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.quality import fidelity
from secateurs.measurement.timing import interleave
from secateurs.plan import SparsityPlan
from secateurs.processes import from_first
from secateurs.pruning import METHODS, Budget
from secateurs.pruning.run import check_one_shot, score
from secateurs.reconstruction import refit
from secateurs.search.choices import EVEN, Choices, Weights
from secateurs.search.examples import some, split
from secateurs.search.latency_table import LatencyTable, mixed
from secateurs.search.layer_times import tokens_of
from secateurs.search.local_search import Candidate, best_of
from secateurs.search.meeting import EFFORTS, MARGINS, Times, check_target, limit_of, met
from secateurs.search.precisions import AUTO, Precision, asked_for
from secateurs.search.result import Compressed, Found, Trial
from secateurs.search.sensitivity import Judge, sensitivities
from secateurs.search.sizes import full_size
from secateurs.training.distillation import distill

_LOGGER = logging.getLogger(__name__)
_METHODS = ("kprune", "obs")  # that it begins with
_HEADS = (1.0, 1 / 64)  # weights of heads beside neurons, for losses that add up
_TRIED = 128  # that each of them is fitted to
_REPEATS, _SECONDS = 11, 2.0  # of measuring a result at one shape, at least
_STEPS, _RATE = 300, 3e-4  # of distillation
_BEHIND = 2.0  # times the least distance so far, at which a precision is given up at a first look
_SLOWER = 1.25  # times the least time of a whole model, above which a precision is not searched
_CLOSE = 1.25  # times what a whole model takes, below which a limit is met only if it is twice
_NOISE = 0.5  # spread of a measurement, over its median, that says nothing any more


@dataclass(frozen=True)
class _Way:
    """One precision, what sizes take in it, and how a choice among them may begin."""

    precision: Precision
    table: LatencyTable
    candidates: list[Candidate]


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
        distill_on: Iterable[Batch] = (),
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
        self._distill_on = check_batches([*self._fitted, *distill_on])
        self._sites = find_sites(model).of_one_stack("compress")
        self._methods = _METHODS if method is None else (method,)
        for name in self._methods:
            check_one_shot(name)
        self._precision = precision
        self._precisions, self._left_out = asked_for(model, precision)
        self._model, self._force, self._seed, self._progress = model, force, seed, progress
        self._recover = partial(refit, model, ridge=ridge, progress=False)
        with evaluation_mode(model):
            self._judge = Judge(model, judged)
        self._scores: dict[str, dict[str, Tensor]] = {}
        self._wholes: dict[str, Times] = {}
        self._ways: dict[str, _Way] = {}
        self._seconds = time.perf_counter() - start

    @property
    def table(self) -> LatencyTable:
        """The times in the precision that was asked for, in the model's own where any was."""
        with evaluation_mode(self._model):
            return self._way(self._precisions[0]).table

    def _way(self, precision: Precision) -> _Way:
        """A precision with its times and candidates, which are made once."""
        if precision.name not in self._ways:
            # One process measures while the others wait: all must decide by the same times.
            measure = partial(
                LatencyTable.measured,
                self._model,
                self.mix,
                precision=precision,
                progress=self._progress,
            )
            table = from_first(measure)
            candidates = [
                [
                    Candidate(Choices(self._sites, scores, losses, table), each)
                    for losses, each in ways
                ]
                for scores, ways in map(self._scored, self._methods)
            ]
            # One of each method first.
            in_turns = [*chain(*zip(*candidates, strict=True))]
            self._ways[precision.name] = _Way(precision, table, in_turns)
        return self._ways[precision.name]

    def _scored(self, method: str) -> tuple[dict[str, Tensor], list[tuple[str, Weights]]]:
        """The scores of a method, and three ways to weigh what goes by them: kinds of losses, and
        weights."""
        pruner = METHODS[method].pruner
        if method not in self._scores:
            self._scores[method] = score(
                self._model,
                self._fitted,
                method=method,
                budget=Budget(heads=0.5, neurons=0.5),
                seed=self._seed,
                progress=self._progress,
                **pruner.loss_options,
            )
        even: Weights = [(1.0, 1.0)] * len(self._sites.layers)
        ways = [(EVEN, even)]
        if pruner.losses == "additive":
            alike: list[Weights] = [[(heads, 1.0)] * len(even) for heads in _HEADS]
            ways += [(pruner.losses, weights) for weights in alike]
        else:
            roots = [(attention**0.5, ffn**0.5) for attention, ffn in self._sensitivities]
            ways += [(EVEN, roots), (pruner.losses, self._sensitivities)]
        return self._scores[method], ways

    @cached_property
    def _sensitivities(self) -> Weights:
        with torch.no_grad():
            return sensitivities(self._model, self._sites, self._judge, progress=self._progress)

    @door
    def meet(self, budget: Budget | Mapping[str, Any] | str, effort: str = "quick") -> Compressed:
        """What meets a budget of time. Raises as `compress`."""
        start = time.perf_counter()
        budget = check_target(budget, effort)
        with evaluation_mode(self._model):
            found, trials = self._whole(budget)
            if found is None:
                found, trials = self._nearest(budget, effort)
                if effort == "long":
                    found = self._distilled(found)
            cosine = fidelity(self._model, found.model, self._judge.batches).mean
        precision = found.precision.name
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
            predicted=found.predicted,
            measured=found.times.ms,
            spread=found.times.spread,
            stock=found.times.stock,
            dense=found.dense,
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

    def _told(self, trials: list[Trial]) -> list[Trial]:
        """What was tried, and what could not be."""
        return trials + [Trial(name, refusal=refusal) for name, refusal in self._left_out.items()]

    def _whole(self, budget: Budget) -> tuple[Found | None, list[Trial]]:
        """The nearest of what meets a budget with nothing removed, if anything does, and all that
        was tried."""
        best: Found | None = None
        trials: list[Trial] = []
        for precision, times in self._measured_wholes():
            if _CLOSE * times.ms > limit_of(budget, times.stock) >= times.ms:
                # One lucky measurement is no promise, and this one is older than the budget.
                again = self._timed(precision, SparsityPlan())
                times = max(times, again, key=lambda each: each.ms / each.stock)
                self._wholes[precision.name] = times
            if times.ms > limit_of(budget, times.stock):
                reason = f"with nothing removed it takes {times.ms:.3g} ms"
                trials.append(Trial(precision.name, refusal=reason))
                continue
            sizes, recovered = [*map(full_size, self._sites.layers)], copy.deepcopy(self._model)
            found = self._converted(
                Found(
                    precision,
                    sizes,
                    SparsityPlan(),
                    times,
                    times.ms,
                    times.ms,
                    recovered,
                    recovered,
                )
            )
            trials.append(Trial(precision.name, times.ms, found.distance))
            if best is None or found.distance < best.distance:
                best = found
        return best, self._told(trials)

    def _measured_wholes(self) -> list[tuple[Precision, Times]]:
        """Every precision in which the model runs, with its times when nothing is removed."""
        for precision in self._precisions:
            name = precision.name
            if name in self._wholes or name in self._left_out:
                continue
            try:
                self._wholes[name] = self._timed(precision, SparsityPlan())
            except (BackendError, FamilyError) as error:
                if precision is self._precisions[0]:
                    raise
                self._left_out[name] = str(error)
        runs = [each for each in self._precisions if each.name in self._wholes]
        return [(precision, self._wholes[precision.name]) for precision in runs]

    def _nearest(self, budget: Budget, effort: str) -> tuple[Found, list[Trial]]:
        """The best of what meets a budget in each precision, and all that was tried."""
        best: Found | None = None
        trials: list[Trial] = []
        refusals: dict[float, Exception] = {}  # by the least time of each
        # What is fastest as a whole has the least to lose: the others are soon seen to be behind.
        wholes = sorted(self._measured_wholes(), key=lambda whole: whole[1].ms / whole[1].stock)
        least = wholes[0][1].ms / wholes[0][1].stock
        for precision, times in wholes:
            slower = times.ms / times.stock / least
            if slower > _SLOWER:
                reason = f"as a whole it takes {slower:.3g} times as long as {wholes[0][0].name}"
                trials.append(Trial(precision.name, refusal=reason))
                continue
            bar = math.inf if best is None else _BEHIND * best.distance
            way = self._way(precision)
            try:
                found = self._in_one_way(way, budget, effort, bar)
            except (BudgetError, BackendError, FamilyError) as error:
                trials.append(Trial(precision.name, refusal=str(error)))
                refusals[way.table.least] = error
                continue
            if isinstance(found, Trial):
                trials.append(found)
                continue
            trials.append(Trial(precision.name, found.times.ms, found.distance))
            if best is None or found.distance < best.distance:
                best = found
        if best is None:
            raise refusals[min(refusals)]
        return best, self._told(trials)

    def _in_one_way(self, way: _Way, budget: Budget, effort: str, bar: float) -> Found | Trial:
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
        predicted, dense = way.table.predict(sizes), way.table.dense
        return self._converted(
            Found(way.precision, sizes, plan, times, predicted, dense, recovered, recovered)
        )

    def _converted(self, found: Found) -> Found:
        """The same with its model converted, and judged as it runs."""
        precision = found.precision
        model = precision.converted(
            precision.copy(found.recovered), found.plan, self._tokens, self._fitted
        )
        return replace(found, model=model, distance=self._judge(model))

    def _distilled(self, found: Found) -> Found:
        """The same, distilled, where that is nearer to the dense model."""
        recovered = distill(
            found.recovered,
            found.plan,
            self._distill_on,
            teacher=self._model,
            steps=_STEPS,
            lr=_RATE,
            seed=self._seed,
            progress=self._progress,
        )
        distilled = self._converted(replace(found, recovered=recovered))
        return min(found, distilled, key=lambda each: each.distance)

    @door
    def timed(self, plan: SparsityPlan) -> Times:
        """The times of the model that a plan leaves. Raises MeasurementError for noise."""
        with evaluation_mode(self._model):
            return self._timed(self._precisions[0], plan)

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
