"""Hard-concrete gates on attention heads under an L0 penalty (Voita et al. 2019, arXiv 1905.09418;
gates of Louizos et al. 2018, arXiv 1712.01312).

With u uniform in every training forward pass,

    s = sigmoid((log u - log(1 - u) + a) / beta),   z = clip(s (zeta - gamma) + gamma, 0, 1)

gates a head, and the loss grows by lambda sum sigmoid(a - beta log(-gamma / zeta)), the expected
number of gates that are not 0. In evaluation z comes from s = sigmoid(a).

Prunes heads. Needs a labelled loss and a training of the whole model. Cost of a step: nothing
beside the model.

Defaults of the code of DSP's authors, who compare with it: beta = 0.33, (gamma, zeta) = (-0.1,
1.1), a uniform after Xavier, learning rate 0.1, lambda = 0.0015. Departures: there the heads with
z > 0.5 stay, however many; here the ones with the largest a, as many as the budget says, so that
methods compare at one budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.processes import averaged
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.units import kept_heads
from secateurs.pruning.base import Needs, Pruner

BETA, GAMMA, ZETA = 0.33, -0.1, 1.1


def hard_concrete(location: Tensor, uniform: Tensor) -> Tensor:
    """The gates z at `location` a for noise `uniform` in (0, 1), both of one shape."""
    noise = uniform.log() - (1 - uniform).log()
    return _stretched(((noise + location) / BETA).sigmoid())


def expected_open(location: Tensor) -> Tensor:
    """The probability that each gate is not 0."""
    return (location - BETA * math.log(-GAMMA / ZETA)).sigmoid()


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class VoitaPruner(Pruner):
    """Hard-concrete gates.

    Args:
        penalty: lambda.
        lr: learning rate of the gates' locations.
    """

    produces = frozenset({"heads"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    soft_gates = True

    def __init__(self, penalty: float = 0.0015, lr: float = 0.1) -> None:
        if penalty < 0 or lr <= 0:
            raise MethodError(
                f"expected a penalty of at least 0 and lr above 0, got {penalty} and {lr}"
            )
        self.weight, self.lr = penalty, lr

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites, budget, seed)
        kept_heads(sites, budget.asked()["heads"])

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.location = nn.Parameter(self.one_per_head().float())

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.location], "lr": self.lr, "weight_decay": 0.0}]

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        if self.model.training:
            uniform = torch.rand(self.location.shape, generator=self.generator)
            limits = torch.finfo(uniform.dtype)
            uniform = uniform.clamp(limits.tiny, 1 - limits.eps).to(self.location)
            gates = hard_concrete(self.location, uniform)
        else:
            gates = _stretched(self.location.detach().sigmoid())
        for name, part in self.heads_by_site(gates).items():
            self.gates[name] = part

    def penalty(self) -> Tensor:
        return self.weight * expected_open(self.location).sum()

    def after_backward(self, step: int) -> None:
        if self.location.grad is not None:
            averaged(self.location.grad)

    def figures(self) -> dict[str, float]:
        return {"expected_heads": float(expected_open(self.location.detach()).sum())}

    def scores(self) -> Mapping[str, Tensor]:
        return self.heads_by_site(self.location.detach())

    def state_dict(self) -> dict[str, Any]:
        return {"location": self.location.detach()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.location.copy_(state["location"])
