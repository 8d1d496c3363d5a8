"""Structured optimal brain surgeon: the units whose loss the rest of their sub-layer makes up for.

Source: Hassibi and Stork 1992, "Second order derivatives for network pruning"; over heads and
neurons Kurtic, Frantar and Alistarh 2023, "ZipLM" (arXiv 2302.04089), section 3.1.

A sub-layer ends in a linear of weight W `[N, K]`, whose inputs on the calibration tokens have the
covariance H `[K, K]`. To remove a set M of inputs and re-fit the others costs
`tr(W[:, M] Hinv[M, M]^-1 W[:, M]^T)`; the cheapest unit goes, W and Hinv are updated, and so on.

score = the squared error of the sub-layer's output once this unit and all before it are gone,
relative to the output's variance, so that layers compare. A bias takes up the mean, so it costs
nothing; without a bias H holds second moments. Departures: neurons go in groups of up to K / 96 at
a time, and the relative error alone compares layers.

Prunes heads, neurons. Needs activations: one forward pass over the calibration batches, layer by
layer; of a model with two stacks all at once. The weights themselves are not changed: `refit` does
that, towards the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch, evaluating, run, unlabelled
from secateurs.errors import DataError, MethodError
from secateurs.processes import summed, total
from secateurs.pruning.activations import reader, units_read
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.base import Needs, Pruner
from secateurs.reconstruction.layer_calls import LayerCall, passes

_STEPS = 96  # in which the neurons of one sub-layer go


class ObsPruner(Pruner):
    """Error of the re-fitted sub-layer behind each unit in the order of removal.

    Args:
        damping: added to the diagonal of H, relative to its mean.
    """

    produces = frozenset({"heads", "neurons"})
    needs = Needs.ACTIVATIONS
    seeded = False
    losses = "cumulative"

    def __init__(self, damping: float = 0.01) -> None:
        if not damping > 0:
            raise MethodError(f"expected a damping above 0, got {damping}")
        self.damping = damping
        self._walks: list[list[_Walk]] = []  # of each batch, in a model of one stack
        self._seen = 0  # batches of this round
        self._layer = 0
        self._moments: dict[str, Moments] = {}
        self._scores: dict[str, Tensor] = {}

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites, budget, seed)
        # Layer by layer, so that no more than the moments of one are held.
        self.rounds = len(sites.layers) if len(sites.stacks) == 1 else 1

    def observe(self, batch: Batch) -> None:
        inputs = unlabelled(batch, self.model)

        def gather(name: str, vectors: Tensor) -> None:
            self._moments.setdefault(name, Moments()).add(vectors)

        with (
            evaluating(self.model),
            torch.no_grad(),
            units_read(self.model, self.sites, self.units(), inputs, gather),
        ):
            if self.rounds == 1:
                run(self.model, inputs)
                return
            if self._layer == 0:
                found = passes(self.model, self.sites, inputs)
                self._walks.append([_Walk(states, calls) for states, calls in found])
            for walk in self._walks[self._seen]:
                walk.advance(self.sites.layer(self.model, self._layer), self._layer)
        self._seen += 1

    def end_round(self) -> None:
        for name, moments in self._moments.items():
            moments.gather()
            self._scores[name] = self._scored(name, moments)
        self._moments, self._seen, self._layer = {}, 0, self._layer + 1

    def scores(self) -> Mapping[str, Tensor]:
        if not self._scores:
            raise DataError("obs expects calibration batches, got none")
        return self._scores

    def _scored(self, name: str, gathered: Moments) -> Tensor:
        """The scores of the units of one site, `[units]`."""
        (units,) = self.units()[name]
        view = reader(self.model, self.sites, name)
        moments = gathered.covariance(centred=view.bias is not None)
        weight = view.weight.detach().to(moments)
        for what, tensor in (("activations", moments), ("weights", weight)):
            if not bool(torch.isfinite(tensor).all()):
                raise MethodError(f"expected finite {what}, got NaN or infinity at {name}")
        at_once = max(1, units // _STEPS)
        return removal_errors(weight, moments, units, self.damping, at_once).cpu()


@dataclass
class _Walk:
    """One batch on its way: the states in front of the layer at hand, `[B, T, d]`, and the call of
    each layer."""

    states: Tensor
    calls: list[LayerCall]

    def advance(self, layer: nn.Module, index: int) -> None:
        self.states = self.calls[index](layer, self.states)


class Moments:
    """Sums of vectors and of their outer products, from chunks of tokens. Products are computed in
    float32 and summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Take in vectors `[M, K]`."""
        vectors = vectors.float()
        total, products = vectors.sum(0, dtype=torch.float64), (vectors.T @ vectors).double()
        self.count += len(vectors)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def gather(self) -> None:
        """Add up what all processes took in."""
        if self.total is not None and self.products is not None:
            summed(self.total)
            summed(self.products)
            self.count = int(total(self.count))

    def covariance(self, centred: bool) -> Tensor:
        """The mean outer product `[K, K]`, of the deviations from the mean if `centred`."""
        assert self.total is not None
        assert self.products is not None
        mean = self.total / self.count
        second = self.products / self.count
        return second - mean[:, None] * mean if centred else second


def removal_errors(
    weight: Tensor, moments: Tensor, units: int, damping: float, at_once: int = 1
) -> Tensor:
    """The error behind the removal of each unit, in the order in which the cheapest goes first.

    Args:
        weight: `[N, K]`, float64.
        moments: H `[K, K]`, of its inputs.
        units: into which the inputs are divided, K / units neighbours each.
        damping: added to the diagonal of H, relative to its mean.
        at_once: units that go together, once their single costs are known.

    Returns:
        `[units]`: `|W X - W' X|^2 / |W X|^2` of the re-fitted W' without the unit and all before
        it; 0 where the outputs are constant.
    """
    size = weight.shape[1] // units
    spread = float(moments.diagonal().mean())
    if spread <= 0:  # constant inputs: a bias takes them up
        return torch.zeros(units, dtype=weight.dtype, device=weight.device)
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    inverse = torch.linalg.inv(moments + damping * spread * identity)
    whole = float(((weight @ moments) * weight).sum())
    errors, error = torch.zeros(units, dtype=weight.dtype, device=weight.device), 0.0
    left = torch.arange(units, device=weight.device)  # which the columns of both belong to
    while len(left):
        costs = _costs(weight, inverse, len(left), size)
        chosen = costs.argsort(stable=True)[:at_once]
        columns = _columns(chosen, size)
        block = inverse[columns][:, columns]
        together = weight[:, columns] @ torch.linalg.inv(block)
        cost = float((together * weight[:, columns]).sum())
        # What a group costs is shared out among its units as their single costs are.
        shares = costs[chosen].cumsum(0)
        errors[left[chosen]] = error + cost * shares / shares[-1].clamp_min(1e-300)
        error += cost
        stays = torch.ones_like(left, dtype=torch.bool).index_fill(0, chosen, False)
        left, others = left[stays], _columns(stays.nonzero()[:, 0], size)
        coupling = inverse[columns][:, others]
        weight = weight[:, others] - together @ coupling
        inverse = inverse[others][:, others] - coupling.T @ torch.linalg.solve(block, coupling)
    return errors / whole if whole > 0 else torch.zeros_like(errors)


def _columns(units: Tensor, size: int) -> Tensor:
    """Where the inputs of some units are."""
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def _costs(weight: Tensor, inverse: Tensor, units: int, size: int) -> Tensor:
    """What it costs to remove each unit alone, `[units]`."""
    if size == 1:
        return weight.square().sum(0) / inverse.diagonal().clamp_min(1e-300)
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = weight.view(-1, units, size).permute(1, 2, 0)
    costs: Tensor = (torch.linalg.solve(blocks, parts) * parts).sum((1, 2))
    return costs
