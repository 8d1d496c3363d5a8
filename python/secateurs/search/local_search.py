"""The choice of sizes that the whole model likes best, of several ways to weigh errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from secateurs.data.batches import shown
from secateurs.plan import SparsityPlan
from secateurs.search.choices import Choices, Weights
from secateurs.search.sensitivity import Judge
from secateurs.search.sizes import Size


class Candidate(NamedTuple):
    """One way to choose: scores of a method, and weights of their sums."""

    choices: Choices
    weights: Weights


def best_of(
    candidates: Sequence[Candidate],
    limit: float,
    recover: Callable[[SparsityPlan], nn.Module],
    judge: Judge,
    trials: int,
    seed: int,
    progress: bool = True,
    *,
    looks: int = 1,
    bar: float = math.inf,
) -> tuple[Candidate, float]:
    """The candidate whose choice within `limit` milliseconds, re-fitted, is nearest to the dense
    model, and its distance; improved by a local search: each trial changes some of the best weights
    so far, and is kept where its choice is better. Where all of the first `looks` candidates are
    farther away than `bar`, the others are not tried.

    Source: Frantar and Alistarh 2022, "SPDY" (arXiv 2201.13096), section 3. Departures: several
    ways to begin; a choice is judged after its re-fit.
    """
    known: dict[tuple[int, tuple[Size, ...]], float] = {}

    def distance(candidate: Candidate) -> float:
        sizes = tuple(candidate.choices.of_least_error(limit, candidate.weights))
        key = id(candidate.choices), sizes
        if key not in known:
            plan = candidate.choices.plan(sizes)
            known[key] = judge.under(recover(plan), plan)
        return known[key]

    chance, best, least = random.Random(seed), candidates[0], float("inf")
    steps = range(len(candidates) + trials)
    for step in shown(steps, len(steps), "search", progress):
        tried = candidates[step] if step < len(candidates) else _changed(best, chance)
        if (found := distance(tried)) < least:
            least, best = found, tried
        if step + 1 == looks and least > bar:
            break
    return best, least


def _changed(candidate: Candidate, chance: random.Random) -> Candidate:
    """The same with one weight in five times up to three, or a third."""

    def changed(weight: float) -> float:
        factor: float = 3 ** chance.uniform(-1, 1)
        return weight * factor if chance.random() < 0.2 else weight

    weights = [(changed(attention), changed(ffn)) for attention, ffn in candidate.weights]
    return Candidate(candidate.choices, weights)
