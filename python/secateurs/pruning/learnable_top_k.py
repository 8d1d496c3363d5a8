"""Top-k with a learnable share: units of one kind, each with a score, each site with the share of
them that stays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

START = 4.6  # of a logit: 99 % stay
SAFE = 1e3  # the turn of a site's best unit, above all others
GONE = -1e3


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, logit: Tensor, left: Tensor) -> Tensor:
        count = math.ceil(float(logit.double().sigmoid()) * int(left.sum()))
        best = scores.masked_fill(~left, -torch.inf).flatten().sort(descending=True, stable=True)
        mask = torch.zeros_like(scores).flatten()
        mask[best.indices[:count]] = 1
        mask = mask.view_as(scores)
        ctx.save_for_backward(mask, left)
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        mask, left = ctx.saved_tensors
        return gradient * left, (gradient * mask).sum(), None


def learnable_top_k(scores: Tensor, logit: Tensor, left: Tensor) -> Tensor:
    """Ones at the ceil(sigmoid(logit) n) largest `scores` of the n that are `left`, zeros
    elsewhere; equal scores go by position.

    Backward, with G = dL/dmask: G for every score that is left, kept or not, and sum(G mask) for
    the logit, without a factor of the sigmoid (MLPruning, arXiv 2105.14636).
    """
    result: Tensor = _TopK.apply(scores, logit, left)  # type: ignore[no-untyped-call]
    return result


class LearnableShares(nn.Module):
    """Scores and logits of all units of one kind.

    Args:
        shapes: of the scores of each site.
        step: units go so many at a time at each site.
        device: of the parameters.

    A logit is START - speed x `moves`, so that one learning rate suits trainings of all lengths.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], step: int, device: torch.device
    ) -> None:
        super().__init__()
        self.step, self.speed, self.target = step, 1.0, 1.0
        self.names = list(shapes)
        self.scores = nn.ParameterList(torch.zeros(s, device=device) for s in shapes.values())
        self.moves = nn.Parameter(torch.zeros(len(shapes), device=device))
        self.left = {
            name: torch.ones(shape, dtype=torch.bool, device=device)
            for name, shape in shapes.items()
        }

    def begin(self, target: float, steps: int, rate: float) -> None:
        """The share `target` is to stay after `steps` steps at a mean learning rate of `rate`."""
        self.target = target
        root = target**0.5
        self.speed = (START - math.log(root / (1 - root))) / (0.5 * steps) / rate

    def logits(self) -> Tensor:
        return START - self.speed * self.moves

    def masks(self) -> dict[str, Tensor]:
        """The mask of each site, differentiable."""
        logits = self.logits()
        return {
            name: learnable_top_k(scores, logits[i], self.left[name])
            for i, (name, scores) in enumerate(zip(self.names, self.scores, strict=True))
        }

    def share(self) -> Tensor:
        """The share of the units left that stays, as the logits have it; differentiable."""
        sizes = torch.stack([self.left[name].sum() for name in self.names])
        return (self.logits().sigmoid() * sizes).sum() / sizes.sum()

    def penalty(self, strength: float) -> Tensor:
        """lambda q, q the squared excess of the share over its target; lambda is at least 50 and
        grows with q to `strength`, but is 10 where q is below 3e-4."""
        excess = (self.share() - self.target).clamp_min(0).square()
        size = float(excess.detach())
        grown = max(strength * size / (1 - self.target) ** 2, 50.0)
        return (10.0 if size < 3e-4 else grown) * excess

    @torch.no_grad()
    def turns(self) -> dict[str, Tensor]:
        """A score for each unit, float64: of all sites, the lowest go until a budget is met.

        The best k of n units stay under one shift c of all logits from where sigmoid(logit + c) n
        passes k - 1 on: at c = logit^-1((k - 1) / n) - logit. Each site's best unit goes last.
        """
        found = {}
        for i, (name, scores) in enumerate(zip(self.names, self.scores, strict=True)):
            left = self.left[name]
            order = scores.masked_fill(~left, -torch.inf).flatten()
            rank = torch.empty(order.numel(), dtype=torch.float64, device=order.device)
            best = order.sort(descending=True, stable=True).indices
            rank[best] = torch.arange(order.numel(), dtype=rank.dtype, device=rank.device)
            below = rank.div(self.step, rounding_mode="floor") * self.step / max(int(left.sum()), 1)
            turn = self.logits()[i].double() - torch.logit(below.clamp(max=1 - 1e-9))
            turn = turn.masked_fill(below == 0, SAFE).view_as(scores)
            found[name] = turn.masked_fill(~left, GONE)
        return found
