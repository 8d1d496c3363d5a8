"""Heads of cross- and multi-lingual models (Ma et al. 2021, arXiv 2108.08375).

Each language gives a ranking of its own, by the gradients of the heads' gates on its data (the
method `gradient`): I = sum of |dL/d xi| over examples, divided by the L2 norm of its layer, and
over the whole model brought to [0, 1] by its least and largest. Several languages become one
ranking in one of two ways of the paper: their matrices are summed (SD), or their data is taken
together and ranked as one (MD). The third, each language's ranking and the best of them (EC), is
`best_heads` with a ranking for each language; it also finds how many heads are best removed.

Prunes heads. Needs gradients: one forward and one backward pass over the batches, which come as
`{"en": [...], "de": [...]}`; batches without languages are one. Rank on a fine-tuned model, with
labels of the source languages, never of those that it is judged on.

Departures: gradients are taken for each example, not for a batch, so that opposite signs do not
cancel (a sentence is an example where tokens have labels); without labels the distance to the dense
model takes the place of the loss, as in `gradient`. Every language counts the same in a sum,
however much data it has.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateurs.data.batches import Batch
from secateurs.errors import DataError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.processes import summed
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.gate_gradients import importance_sums

COMBINATIONS = ("sum", "merge")


class CrossLingualPruner(Pruner):
    """Heads ranked in each language.

    Args:
        combine: "sum" adds the rankings of all languages (SD), "merge" ranks on all data as one
            (MD).
    """

    produces = frozenset({"heads"})
    needs = Needs.GRADIENTS
    grouped = True

    def __init__(self, combine: str = "sum") -> None:
        if combine not in COMBINATIONS:
            raise MethodError(
                f"expected combine to be one of {', '.join(COMBINATIONS)}, got {combine!r}"
            )
        self.combine = combine
        self._sums: dict[str, dict[str, Tensor]] = {}  # by language and site
        self._rankings: list[dict[str, Tensor]] = []

    def observe(self, batch: Batch) -> None:
        sums, self._power = importance_sums(
            self.model, self.sites, self.units(), SparsityPlan(), batch, self.generator
        )
        mine = self._sums.setdefault(self.group if self.combine == "sum" else "", {})
        for name, total in sums.items():
            mine[name] = mine.get(name, 0) + total

    def end_round(self) -> None:
        for sums in self._sums.values():
            importance = {name: summed(t) ** (1 / self._power) for name, t in sums.items()}
            if not any(bool(values.any()) for values in importance.values()):
                raise MethodError("expected gradients that tell heads apart, got zeros everywhere")
            normed = {name: v / v.norm().clamp_min(1e-20) for name, v in importance.items()}
            self._rankings.append(_stretched(normed))

    def scores(self) -> Mapping[str, Tensor]:
        if not self._rankings:
            raise DataError("cross-lingual ranking expects calibration batches, got none")
        return {
            name: torch.stack([ranking[name] for ranking in self._rankings]).sum(0)
            for name in self._rankings[0]
        }


def _stretched(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores moved and scaled so that the least of the model is 0 and the largest 1."""
    least = min(float(score.min()) for score in scores.values())
    width = max(float(score.max()) for score in scores.values()) - least
    return {name: (score - least) / (width or 1.0) for name, score in scores.items()}
