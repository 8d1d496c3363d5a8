"""Sensitivity allocation, ours after the idea of Sensi-BERT (Kundu et al. 2023, arXiv 2307.11764).

Each attention and each FFN loses as much as its sensitivity allows, while the model is fine-tuned,
without a teacher. First, for a share of the steps, every head and neuron u of a sub-layer t has a
real-valued mask m, 1 at the start, which is trained beside the model under an l1 penalty, weighted
by c / sum(c N): c the weights that a unit holds, N the units of its sub-layer. Meanwhile

    s_u <- 0.99 s_u + 0.01 |m_u dL/dm_u|        sigma_t = mean of the largest fifth of s_u / c_t

without the penalty in L, sigma over its largest among sub-layers of the same kind. The least
sensitive fifths are left out of the mean, for dead units would rule it. A sub-layer keeps the share
min(gamma sigma_t^alpha, 1) of its units, the ones with the largest s, but a head or a tenth of the
neurons at least; gamma follows from the budget. Then the masks are folded into the projection
behind them, so that the function stays, and the units go in equal rounds.

Which gamma meets a budget exactly needs no search: the j-th best of N units stays from the gamma on
at which gamma sigma^alpha N reaches j - 1/2, so its score is N sigma^alpha / (j - 1/2), and
whatever of all sub-layers scores lowest goes.

Prunes heads, neurons. Needs a labelled loss and a training. Cost of a step: gradients of one number
for each unit, and only while the sensitivities are measured.

Of the paper only the idea is known to us, from its abstract: parameters ranked by a sensitivity
analysis, trimmed by it during fine-tuning, for a budget. Everything above is ours; so are the
defaults. Two controls show what the allocation is worth: `order="magnitude"` keeps the shares and
takes the units with the largest weights, and the allocator `per_layer` keeps the order and takes
equal shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan
from secateurs.plan.masks import KeepMask
from secateurs.processes import averaged
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.magnitudes import head_magnitudes, neuron_magnitudes

MEMORY = 0.99
TOP = 0.2  # of a sub-layer's units that its sensitivity is a mean of
LEAST_NEURONS = 0.1
ORDERS = ("sensitivity", "magnitude")


def sensitivity_of(units: Tensor) -> float:
    """The mean of the largest fifth of `units` `[N]`, of one at least."""
    return float(units.double().topk(math.ceil(TOP * units.numel())).values.mean())


def turns(order: Tensor, share: float, floor: int, most: int) -> Tensor:
    """The score of each unit of one sub-layer, `[N]` float64: over all sub-layers, the lowest go.

    Args:
        order: what the units of the sub-layer are ranked by; among equal ones the last goes first.
        share: sigma^alpha.
        floor: how many go last of all.
        most: units of the largest sub-layer.
    """
    rank = torch.empty_like(order, dtype=torch.float64)
    best = order.sort(descending=True, stable=True).indices
    rank[best] = torch.arange(1, order.numel() + 1, dtype=rank.dtype, device=rank.device)
    score = order.numel() * share / (rank - 0.5)
    return torch.where(rank <= floor, score + 2 * most, score)


class SensiBertPruner(Pruner):
    """Sensitivity allocation.

    Args:
        penalty: weight of the l1 norm of the masks.
        lr: learning rate of the masks.
        alpha: how unequal the shares are; 0 makes them equal.
        order: of the units inside a sub-layer: sensitivity or magnitude.
        measure: share of the training in which the sensitivities are measured.
        trim: share of it, after that, over which the units go.
        rounds: removals in that time.
    """

    produces = frozenset({"heads", "neurons"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    seeded = False

    def __init__(
        self,
        penalty: float = 0.1,
        lr: float = 1e-2,
        alpha: float = 0.5,
        order: str = "sensitivity",
        measure: float = 0.2,
        trim: float = 0.3,
        rounds: int = 3,
    ) -> None:
        if order not in ORDERS:
            raise MethodError(f"expected an order in {', '.join(ORDERS)}, got {order!r}")
        if min(penalty, alpha) < 0 or lr <= 0 or rounds < 1:
            raise MethodError(
                "expected a penalty and an alpha of at least 0, lr above 0 and one round or more, "
                f"got {penalty}, {alpha}, {lr} and {rounds}"
            )
        if min(measure, trim) <= 0 or measure + trim > 1:
            raise MethodError(
                "expected measure and trim above 0 that are at most the whole training together, "
                f"got {measure} and {trim}"
            )
        self.weight, self.lr, self.alpha, self.order = penalty, lr, alpha, order
        self._shares, self.removals = (measure, trim), rounds
        self._masks: dict[str, nn.Parameter] = {}
        self._sensitivity: dict[str, Tensor] = {}
        self._magnitudes: dict[str, Tensor] = {}
        self._folded = False
        self._removed = 0

    def open(self, gates: Gates) -> None:
        super().open(gates)
        device = next(self.model.parameters()).device
        for name, shape in self.units().items():
            self._masks[name] = nn.Parameter(torch.ones(shape, device=device))
            self._sensitivity[name] = torch.zeros(shape, device=device)
            gates[name] = self._masks[name]

    def begin(self, steps: int) -> None:
        super().begin(steps)
        measure, trim = self._shares
        self._measured = round(measure * steps)
        spacing = trim * steps / self.removals
        self._events = [round(self._measured + (i + 1) * spacing) for i in range(self.removals)]
        order = [0, self._measured, *self._events]
        if order != sorted(set(order)):
            raise MethodError(
                f"expected a training long enough for a step of measuring and {self.removals} "
                f"removals, got one of {steps} steps"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self._masks.values()], "lr": self.lr, "weight_decay": 0.0}]

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        if self._folded:
            return
        total = sum(self._cost(name) * m.numel() for name, m in self._masks.items())
        for name, mask in self._masks.items():
            assert mask.grad is not None
            averaged(mask.grad)
            self._sensitivity[name].lerp_((mask * mask.grad).abs(), 1 - MEMORY)
            # Here and not in the loss, whose gradient the sensitivity is of.
            mask.grad += self.weight * self._cost(name) / total * mask.sign()

    def after_step(self, step: int) -> None:
        done = step + 1
        if not self._folded and done >= self._measured:
            self._fold()
        due = sum(done >= event for event in self._events)
        if due > self._removed:  # later, if that step was left out
            self._removed = due
            self._shut()

    def close(self) -> None:
        if not self._folded:
            self._fold()

    def figures(self) -> dict[str, float]:
        sizes = torch.cat([mask.detach() for mask in self._masks.values()])
        return {"smallest_mask": float(sizes.min()), "folded": float(self._folded)}

    def scores(self) -> Mapping[str, Tensor]:
        per_cost = {name: s / self._cost(name) for name, s in self._sensitivity.items()}
        sigmas = {name: sensitivity_of(s) for name, s in per_cost.items()}
        if not any(sigmas.values()):
            raise MethodError("expected gradients that tell units apart, got zeros everywhere")
        scores = {}
        for name, s in self._sensitivity.items():
            kind = name.rpartition(".")[2]
            alike = [n for n in sigmas if n.endswith(kind)]
            largest = max(sigmas[n] for n in alike)
            most = max(self._sensitivity[n].numel() for n in alike)
            floor = 1 if kind == "heads" else math.ceil(LEAST_NEURONS * s.numel())
            share = (sigmas[name] / largest) ** self.alpha if largest else 1.0
            scores[name] = turns(self._order()[name], share, floor, most)
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": {name: mask.detach() for name, mask in self._masks.items()},
            "sensitivity": dict(self._sensitivity),
            "magnitudes": dict(self._magnitudes),
            "folded": self._folded,
            "removed": self._removed,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, mask in self._masks.items():
            mask.copy_(state["masks"][name])
            self._sensitivity[name].copy_(state["sensitivity"][name])
            if state["folded"]:
                self.gates[name] = torch.ones_like(mask)
        device = next(self.model.parameters()).device
        self._magnitudes = {name: m.to(device) for name, m in state["magnitudes"].items()}
        self._folded, self._removed = state["folded"], state["removed"]
        if self._removed:
            self._shut()

    def _cost(self, name: str) -> float:
        """Weights that one unit of a sub-layer holds."""
        site = self.sites.by_name[name]
        sizes = self.sites.layers[site.layer].linears()
        held = sum(math.prod(sizes[role]) for role in self.sites.sublayer(site).roles)
        return held / self._masks[name].numel()

    def _order(self) -> Mapping[str, Tensor]:
        if self.order == "sensitivity":
            return self._sensitivity
        return self._magnitudes or self._measured_magnitudes()

    def _measured_magnitudes(self) -> dict[str, Tensor]:
        sizes = {"heads": head_magnitudes, "neurons": neuron_magnitudes}
        found = {}
        for name in self._masks:
            site = self.sites.by_name[name]
            found[name] = sizes[site.kind](self.model, self.sites, site)
        return found

    def _fold(self) -> None:
        """The masks become part of the weights; from now on the order of the units stands."""
        self._folded = True
        for name in self._masks:
            self.gates.fold(name)
        if self.order == "magnitude":
            self._magnitudes = self._measured_magnitudes()

    def _plan_now(self) -> SparsityPlan:
        part = self._removed / self.removals
        return self.allocated({kind: part * share for kind, share in self.budget.asked().items()})

    def _shut(self) -> None:
        for name, mask in self._plan_now().masks.items():
            assert isinstance(mask, KeepMask)
            self.gates[name] = mask.keep.to(self._masks[name])
