"""Choices: every size that each layer may have, with its time and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import eq

import numpy as np
from torch import Tensor

from secateurs.architectures.sites import Sites
from secateurs.errors import BudgetError
from secateurs.plan import SparsityPlan
from secateurs.search.knapsack import Numbers, cheapest
from secateurs.search.latency_table import LatencyTable
from secateurs.search.sizes import Size, full_size, heads_kept, neurons_kept, plan_of

Weights = Sequence[tuple[float, float]]
"""How much an error of 1 in the attention, and in the FFN, of each layer costs."""


EVEN = "even"
"""Losses of a share of the units, whichever they are, that grow faster than the share does."""
_GROWTH = 3.0  # the power: the larger, the more alike are the shares of all sub-layers


class Choices:
    """The sizes of all layers, of which a choice is made by times and errors.

    Args:
        sites: of the model.
        scores: `layers.I.heads` `[H]` and `layers.I.neurons` `[F]`.
        losses: as `Pruner.losses` of the method that gave them, or EVEN, by which scores only say
            in which order units go.
        table: of times.
    """

    def __init__(
        self, sites: Sites, scores: Mapping[str, Tensor], losses: str, table: LatencyTable
    ) -> None:
        self._sites, self._scores, self._table = sites, scores, table
        self._sizes = [
            [Size(h, n) for h in heads_kept(shape) for n in neurons_kept(shape)]
            for shape in sites.layers
        ]
        self._times: list[Numbers] = []
        self._errors: list[tuple[Numbers, Numbers]] = []
        for index, (sizes, times) in enumerate(zip(self._sizes, table.layers, strict=True)):
            heads, neurons = (
                _errors(scores[f"layers.{index}.{kind}"], losses) for kind in ("heads", "neurons")
            )
            self._times.append(np.array([times(size) for size in sizes]))
            self._errors.append(
                (
                    np.array([heads[size.heads] for size in sizes]),
                    np.array([neurons[size.neurons] for size in sizes]),
                )
            )

    def of_least_error(self, limit: float, weights: Weights) -> list[Size]:
        """The sizes within `limit` milliseconds whose weighted errors are least in sum.

        Raises BudgetError where even without any layer the model takes longer.
        """
        costs = [
            attention * of_heads + ffn * of_neurons
            for (attention, ffn), (of_heads, of_neurons) in zip(weights, self._errors, strict=True)
        ]
        chosen = cheapest(self._times, costs, limit - self._table.dense)
        if chosen is None:
            least = self._table.dense + sum(float(times.min()) for times in self._times)
            raise BudgetError(
                f"expected a time of at least {least:.3g} ms, which the model takes without its "
                f"layers, {self._table.stock / least:.3g} times as fast as it is, got "
                f"{limit:.3g} ms"
            )
        return [sizes[option] for sizes, option in zip(self._sizes, chosen, strict=True)]

    def is_whole(self, sizes: Sequence[Size]) -> bool:
        """Whether a choice removes nothing."""
        return all(map(eq, sizes, map(full_size, self._sites.layers)))

    def plan(self, sizes: Sequence[Size]) -> SparsityPlan:
        """The plan that a choice means."""
        return plan_of(self._sites, self._scores, sizes)


def _errors(scores: Tensor, losses: str) -> Numbers:
    """The error of keeping so many units, `[units + 1]`: 0 for all; for none the sum of additive
    losses, else 1."""
    if losses == EVEN:
        share: Numbers = np.linspace(1.0, 0.0, len(scores) + 1) ** _GROWTH
        return share
    ordered = scores.double().sort().values
    if losses != "cumulative":
        ordered = ordered.clamp_min(0).cumsum(0)
    if losses == "unknown":
        ordered = ordered / ordered[-1].clamp_min(1e-300)
    errors = np.zeros(len(ordered) + 1)
    errors[:-1] = ordered.flip(0).numpy()
    if losses != "additive":
        errors[0] = max(1.0, errors[0])
    return errors
