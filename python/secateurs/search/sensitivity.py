"""Sensitivity: what an error of one sub-layer costs at the model's output, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.architectures.schema import SubLayer
from secateurs.architectures.sites import Sites, find_sites
from secateurs.data.batches import Batch, main_output, run, shown, token_weights, unlabelled
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.measurement.quality import pooled
from secateurs.plan import SparsityPlan
from secateurs.processes import summed

_SHRUNK = 0.5
"""To which a sub-layer's output is drawn towards its mean: a quarter of its variance is lost."""


class Judge:
    """The distance of other models' outputs to those of the dense one on some batches.

    It is the mean Kullback-Leibler divergence of the dense model's predictions where it has logits
    of several classes; of a single score, the mean squared difference over the variance; else one
    minus the mean cosine of the pooled states.

    Args:
        dense: a transformers model in evaluation mode.
        batches: labels are left out.
    """

    def __init__(self, dense: nn.Module, batches: Iterable[Batch]) -> None:
        self.batches = [unlabelled(batch, dense) for batch in batches]
        self._dense = [self._output(dense, batch) for batch in self.batches]
        self._has_logits = self._dense[0][1]
        is_score = self._has_logits and self._dense[0][0].shape[1] == 1
        self._spread = self._variance() if is_score else 1.0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        """The distance of `model`, at least 0. Raises MethodError if it is not finite."""
        sums = torch.zeros(2, dtype=torch.float64)  # of distances, and how many
        for batch, (dense, _) in zip(self.batches, self._dense, strict=True):
            found = self._distances(self._output(model, batch)[0].double(), dense.double())
            sums += torch.stack([found.sum(), found.new_tensor(len(found))]).cpu()
        distance, count = map(float, summed(sums))
        if not math.isfinite(distance):
            raise MethodError("expected finite outputs to compare by, got NaN or infinity")
        return max(0.0, distance / count / self._spread)

    def under(self, model: nn.Module, plan: SparsityPlan) -> float:
        """The distance of what is left of `model` under `plan`; the model is not changed."""
        with Gates(model, find_sites(model)) as gates:
            gates.set_plan(plan)
            return self(model)

    def _distances(self, given: Tensor, dense: Tensor) -> Tensor:
        """The distance of each vector, `[M]`, of `[M, C]`."""
        if not self._has_logits:
            return 1 - F.cosine_similarity(given, dense)
        if dense.shape[1] == 1:
            return (given - dense).square()[:, 0]
        logs = [rows.log_softmax(1) for rows in (given, dense)]
        return (logs[1].exp() * (logs[1] - logs[0])).sum(1)

    def _variance(self) -> float:
        """The variance of the dense model's scores."""
        scores = torch.cat([output for output, _ in self._dense]).double()
        moments = torch.stack([scores.sum(), scores.square().sum(), scores.new_tensor(len(scores))])
        first, second, count = map(float, summed(moments.cpu()))
        return max(second / count - (first / count) ** 2, 1e-12)

    @staticmethod
    @torch.no_grad()
    def _output(model: nn.Module, batch: Batch) -> tuple[Tensor, bool]:
        """Vectors `[M, C]`, one of each example or real token, and whether they are logits."""
        answer = run(model, batch)
        output = main_output(answer)
        if getattr(answer, "last_hidden_state", None) is output:
            return pooled(output, batch), False
        if output.dim() == 2:
            return output, True
        weights = token_weights(output, batch).expand(*output.shape[:2], 1)
        return output[weights[..., 0] > 0], True


def sensitivities(
    model: nn.Module, sites: Sites, judge: Judge, *, progress: bool = True
) -> list[tuple[float, float]]:
    """How far the output moves for a relative error of 1 in the attention, and in the FFN, of each
    layer: the distance when the variance of its output is cut by a quarter, times four.

    Args:
        model: dense, in evaluation mode.
        judge: made with it.
    """
    moved = []
    places = [
        (index, sublayer)
        for index in range(len(sites.layers))
        for sublayer in sites.architecture.sublayers
    ]
    for index, sublayer in shown(places, len(places), "sensitivity", progress):
        with _shrunk(sites.layer(model, index), sublayer):
            moved.append(judge(model) / _SHRUNK**2)
    # A sub-layer without any effect at all would be free, and its order a matter of rounding.
    floor = max(max(moved) * 1e-6, 1e-12)
    values = [max(value, floor) for value in moved]
    return list(zip(values[::2], values[1::2], strict=True))


@contextmanager
def _shrunk(layer: nn.Module, sublayer: SubLayer) -> Iterator[None]:
    """Draw the outputs of a sub-layer towards their mean inside the block."""

    def shrink(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        mean = output.flatten(0, -2).mean(0)
        return mean + (1 - _SHRUNK) * (output - mean)

    hook = layer.get_submodule(sublayer.last.path).register_forward_hook(shrink)
    try:
        yield
    finally:
        hook.remove()
