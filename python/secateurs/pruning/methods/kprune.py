"""K-prune's mixed score: what a unit says about the dense model's predictions, and what it adds to
the residual stream, for each multiply-accumulate it takes.

Source: Park, Choi and Kang 2024, "Accurate Retraining-free Pruning for Pretrained Encoder-based
Language Models" (arXiv 2308.03449), sections 3.2 and 3.3.

    score_u = (predictive * mean_e g_ue^2 / 2
               + representation * sum_c mean_t phi_tc^2 mean_n W_nc^2) / macs_u

g_ue is the derivative of an example's divergence from the dense model's predictions by the gate of
unit u; phi are the inputs of the last linear of weight W, c those of the unit; heads times 64.
Departures: at the dense model that derivative is zero, so g is that of the log-likelihood of a
class drawn from the predictions at temperature 2 (of the same second order); models without classes
use the distance along a random direction, as `gradient` does; one gate for a head, not one for each
of its channels; a head counts its linears' operations, not its scores'.

Prunes heads, neurons. Needs gradients, no labels: one forward and one backward pass over the
calibration batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateurs.data.batches import Batch, batch_size, main_output, token_weights, unlabelled
from secateurs.errors import DataError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.processes import summed, total
from secateurs.pruning.activations import reader, units_read
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.gate_gradients import along_a_direction, gate_gradients

_TEMPERATURE = 2.0
_HEADS = 64.0  # that a head counts more than a neuron


class KPrunePruner(Pruner):
    """Mean squared gradient of the predictions and energy of the output of each unit, for each
    operation.

    Args:
        predictive: weight of what a unit says about the predictions.
        representation: weight of what it adds to the residual stream.
        per_operation: divide by the operations that a unit takes. Without that a score is the loss
            of its removal, for who knows better what a unit costs.
    """

    produces = frozenset({"heads", "neurons"})
    needs = Needs.GRADIENTS
    losses = "additive"
    loss_options: ClassVar[Mapping[str, Any]] = {"per_operation": False}

    def __init__(
        self, predictive: float = 1.0, representation: float = 2.5e-4, per_operation: bool = True
    ) -> None:
        if min(predictive, representation) < 0 or predictive + representation <= 0:
            raise MethodError(
                "expected weights of at least 0, one of them above, got "
                f"predictive={predictive} and representation={representation}"
            )
        self.predictive, self.representation = predictive, representation
        self.per_operation = per_operation
        self._squares: dict[str, Tensor] = {}  # sums over examples of g^2
        self._energies: dict[str, Tensor] = {}  # sums over tokens of phi^2, [K]
        self._tokens: dict[str, int] = {}
        self._examples = 0

    def observe(self, batch: Batch) -> None:
        inputs = unlabelled(batch, self.model)

        def gather(name: str, vectors: Tensor) -> None:
            energy = vectors.double().square().sum(0).cpu()
            self._energies[name] = self._energies.get(name, 0) + energy
            self._tokens[name] = self._tokens.get(name, 0) + len(vectors)

        with units_read(self.model, self.sites, self.units(), inputs, gather):
            gradients = gate_gradients(
                self.model,
                self.sites,
                self.units(),
                SparsityPlan(),
                inputs,
                lambda output: self._target(output, inputs),
            )
        for name, gradient in gradients.items():
            squares = gradient.double().square().sum(0).cpu()
            self._squares[name] = self._squares.get(name, 0) + squares
        self._examples += batch_size(inputs)

    def end_round(self) -> None:
        for name in self._squares:
            summed(self._squares[name])
            summed(self._energies[name])
            self._tokens[name] = int(total(self._tokens[name]))
        self._examples = int(total(self._examples))

    def scores(self) -> Mapping[str, Tensor]:
        if not self._squares:
            raise DataError("kprune expects calibration batches, got none")
        return {name: self._score(name, squares) for name, squares in self._squares.items()}

    def _score(self, name: str, squares: Tensor) -> Tensor:
        """The mixed score of the units of one site, `[units]`."""
        site = self.sites.by_name[name]
        shape, roles = self.sites.layers[site.layer], self.sites.sublayer(site).roles
        weight = reader(self.model, self.sites, name).weight.detach().double().cpu()
        energy = self._energies[name] / self._tokens[name] * weight.square().mean(0)
        added = energy.view(len(squares), -1).sum(1)
        said = squares / self._examples / 2
        macs = sum(
            rows * columns for role, (rows, columns) in shape.linears().items() if role in roles
        ) / len(squares)
        mixed = self.predictive * said + self.representation * added
        weighed = mixed * (_HEADS if site.kind == "heads" else 1.0)
        return weighed / macs if self.per_operation else weighed

    def _target(self, output: Any, batch: Batch) -> Tensor:
        """The log-likelihood of drawn classes, or the output along a direction."""
        logits = main_output(output)
        if getattr(output, "logits", None) is not logits or logits.shape[-1] < 2:
            return along_a_direction(output, batch, self.generator)
        likelihoods = (logits / _TEMPERATURE).log_softmax(-1)
        rows = likelihoods.detach().flatten(0, -2).exp().cpu()
        if not bool(torch.isfinite(rows).all()):
            raise MethodError("expected finite predictions, got NaN or infinity")
        drawn = torch.multinomial(rows, 1, generator=self.generator).to(logits.device)
        of_drawn = likelihoods.gather(-1, drawn.view(*likelihoods.shape[:-1], 1))
        likelihood: Tensor = (of_drawn * token_weights(logits, batch)).sum()
        return likelihood
