"""DCIL: two paths and refined gradients (Kim et al. 2021, arXiv 2109.04660), for Transformers.

Every step runs the model twice with the same dense weights W and mask M. The part path computes
with W M, so that its gradient reaches kept weights only; it is what is evaluated and kept. The full
path computes with W, and its gradient is multiplied by 1 - M: pruned weights learn from it alone,
where a straight-through estimator would give them the gradient of a model that they are not in. The
loss of the part path grows by that of the full path and, once the paths know something,

    T^2 KL(full / T || part / T) + T^2 KL(part / T || full / T)

each with its first side as a fixed target. M keeps the largest W^2 of the whole model, taken anew
every `every` steps, so that weights return; the share that goes follows a cubic schedule.

Prunes weights (as published), and blocks and patterns, for which W^2 is summed over the unit. Needs
a labelled loss, with labels among the model's own keyword inputs. Cost of a step: two forward and
two backward passes. Compare it at equal time, too.

Defaults of the authors' code: T = 2, a mask every 16 steps; of its 300 epochs the schedule ends
at 225 and the divergences begin at 70. That code is of convolutional nets: where it has
normalisation and the last layer twice, the full path here has copies of every norm of the model and
of what stands on the encoder (ours). They start equal and learn at the model's rate, but are not in
the clipped gradient norm. Where the model has one output, squared differences take the place of the
divergences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from secateurs.data.batches import class_logits, is_label
from secateurs.errors import DataError, MethodError
from secateurs.masking.gates import Gates
from secateurs.processes import averaged
from secateurs.pruning.base import Needs
from secateurs.pruning.schedules import Schedule
from secateurs.pruning.weight_scores import WeightPruner

TEMPERATURE = 2.0
TOGETHER = 70 / 300  # share of the training at which the divergences begin


def refined(weight: Tensor, gate: Tensor | None) -> Tensor:
    """`weight` as it is, whose gradient reaches only what `gate` masks: nothing, without one."""
    if gate is None:
        return weight.detach()
    return (weight * gate).detach() + weight * (1 - gate)


def divergence(given: Tensor, target: Tensor) -> Tensor:
    """T^2 KL(target / T || given / T) of logits `[..., C]`, a mean over all but C; half the mean
    squared difference where C is 1."""
    target = target.detach()
    if given.shape[-1] == 1:
        return (given - target).square().mean() / 2
    given, target = ((x / TEMPERATURE).log_softmax(-1).flatten(0, -2) for x in (given, target))
    mean = F.kl_div(given, target, log_target=True, reduction="batchmean")
    return TEMPERATURE**2 * mean


class DCILPruner(WeightPruner):
    """Dynamic collective learning of a part and the full model.

    Args:
        every: steps between two masks.
        end: of the schedule, as a share of the training.
    """

    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    seeded = False

    def __init__(self, every: int = 16, end: float = 0.75) -> None:
        if every < 1:
            raise MethodError(f"expected at least one step between masks, got {every}")
        self.every, self.end = every, end
        self._copies: dict[str, nn.Parameter] = {}  # by the model's name of what they stand for
        self._gone = 0.0
        self._ranking = False
        self._done = 0
        self._in_full = False
        self._inputs: Mapping[str, Any] = {}
        self._part: Any = None
        self._schedule: Schedule | None = None

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.units()  # refuses blocks and patterns that do not fit
        names = {id(p): name for name, p in self.model.named_parameters()}
        self._names = {site: names[id(weight)] for site, weight in self.linear_weights().items()}
        self._copies = {
            name: nn.Parameter(parameter.detach().clone())
            for name, parameter in own_to_a_path(self.model)
        }
        gates.on_output(self._remember)

    def begin(self, steps: int) -> None:
        super().begin(steps)
        (target,) = self.budget.asked().values()
        self._schedule = Schedule(0.0, target, 0, round(self.end * steps)).within(steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [*self._copies.values()], "weight_decay": 0.0}]

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        if not self._in_full:
            self._inputs, self._part = inputs, None

    def penalty(self) -> Tensor | None:
        """Return the loss of the full path, and how far the paths are from each other."""
        if not any(map(is_label, self._inputs)):
            raise DataError(
                "expected labels among the model's keyword inputs, for the full path, got "
                f"{', '.join(self._inputs) or 'none'}"
            )
        if any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            raise MethodError(
                "expected a model without gradient checkpointing: it would compute the full path "
                "anew with the weights of the part path"
            )
        full = self._full_path()
        loss: Tensor = full.loss
        if self._done >= TOGETHER * self.steps:
            one, other = class_logits(self._part), class_logits(full)
            loss = loss + divergence(one, other) + divergence(other, one)
        self._inputs, self._part = {}, None
        return loss

    def after_backward(self, step: int) -> None:
        for copy in self._copies.values():
            if copy.grad is not None:
                averaged(copy.grad)

    def after_step(self, step: int) -> None:
        schedule = self._schedule
        assert schedule is not None
        self._done = step + 1
        late = self._done >= schedule.end and self._gone < schedule.last
        if self._done % self.every == 0 or late:
            self._gone = schedule(self._done)
            self._ranking = True
            for name, keep in self.kept_at(self._gone).items():
                self.gates[name] = keep.to(self.linear_weights()[name])
            self._ranking = False

    def figures(self) -> dict[str, float]:
        return {"gone": self._gone}

    @torch.no_grad()
    def weight_scores(self) -> Mapping[str, Tensor]:
        """Squares; once the whole budget is gone, what the gates keep is what stays."""
        (target,) = self.budget.asked().values()
        if self._gone >= target and not self._ranking:
            return dict(self.gates)
        return {name: weight.float().square() for name, weight in self.linear_weights().items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "copies": {name: copy.detach() for name, copy in self._copies.items()},
            "gates": dict(self.gates),
            "gone": self._gone,
            "done": self._done,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = self.linear_weights()
        for name, copy in self._copies.items():
            copy.copy_(state["copies"][name])
        for name, gate in state["gates"].items():
            self.gates[name] = gate.to(weights[name])
        self._gone, self._done = state["gone"], state["done"]

    def _remember(self, output: Any) -> None:
        if not self._in_full:
            self._part = output

    def _full_path(self) -> Any:
        """The model's output on the same inputs with dense weights and the copies."""
        shut = dict(self.gates)
        replaced: dict[str, Tensor] = dict(self._copies)
        for site, weight in self.linear_weights().items():
            replaced[self._names[site]] = refined(weight, shut.get(site))
        self._in_full = True
        try:
            for name, gate in shut.items():
                self.gates[name] = gate.new_ones(()).expand(gate.shape)
            return functional_call(self.model, replaced, (), dict(self._inputs))
        finally:
            for name, gate in shut.items():
                self.gates[name] = gate
            self._in_full = False


def own_to_a_path(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of every norm, and of what stands on the encoder and shares none with it."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    inside = {id(parameter) for parameter in base.parameters()}
    norms = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__.endswith("Norm")
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (id(parameter) in norms or id(parameter) not in inside):
            yield name, parameter
