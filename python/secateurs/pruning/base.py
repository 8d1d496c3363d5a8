"""Pruner: a pruning method scores units, driven over calibration data or along a training, and ends
in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch
from secateurs.errors import BudgetError, MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan
from secateurs.pruning.allocation.allocator import Allocator, Price
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.global_ranking import GlobalRanking
from secateurs.pruning.allocation.units import in_blocks


class Needs(Flag):
    """Kinds of things that a method reads."""

    NOTHING = 0
    WEIGHTS = auto()
    ACTIVATIONS = auto()
    GRADIENTS = auto()
    TRAINING = auto()


def notes_of(
    method: str, budget: Budget | None, seed: int, options: Mapping[str, Any], allocator: str | None
) -> dict[str, Any]:
    """What a plan notes of how it came to be; the allocator in words, where the caller chose it."""
    notes = {"method": method, "budget": str(budget), "seed": seed, "options": options}
    return notes if allocator is None else {**notes, "allocator": allocator}


class Pruner:
    """One pruning method. A subclass is one file, one row in METHODS, and fills in what it needs
    of:

    `start` (called once), `observe` (each calibration batch, `rounds` times over), `end_round`, and
    `scores`. Scores are tensors by site name (`layers.I.heads` `[H]`, `layers.I.neurons` `[F]`,
    `layers.I.attention` and `.ffn` `[]`, `layers.I.ROLE` `[N/bn, K/bk]`); the lowest go first,
    and the allocator decides where. The class's facts (`produces` to `soft_gates`) are what the
    tests of all methods hold it to.

    A method that trains is driven by a `Session` instead, which calls, after `start`: `open` once,
    with gates on the live model; for each step `before_forward`, `penalty`, `after_backward` and
    `after_step`; `close` once. Its `state_dict` holds all it needs to go on exactly.
    """

    produces: ClassVar[frozenset[str]]
    """Kinds of units the method can remove."""
    needs: ClassVar[Needs]
    """Kinds of things that it reads."""
    labelled: ClassVar[bool] = False
    """Whether every batch must have labels."""
    seeded: ClassVar[bool] = True
    """Whether another seed may give another plan."""
    nested: ClassVar[bool] = True
    """Whether a larger budget removes all that a smaller one removes."""
    whole_layers: ClassVar[bool] = False
    """Whether every layer must lose the same whole number of units."""
    grouped: ClassVar[bool] = False
    """Whether its batches may come in groups, as `{"en": [...], "de": [...]}`; the name of the one
    that is observed is then `group`."""
    chooses: ClassVar[bool] = False
    """Whether the method itself decides how much each layer loses, so that it takes no
    allocator."""
    losses: ClassVar[str] = "unknown"
    """What a sum of scores says to a search over sizes: "additive", where it is a loss of the
    model, whatever the sites; "cumulative", where a score is the error of its own sub-layer behind
    the unit and all that go before it, relative to that of all; "unknown", where scores only
    rank."""
    loss_options: ClassVar[Mapping[str, Any]] = {}
    """Options under which its scores are such losses."""
    soft_gates: ClassVar[bool] = False
    """Whether its gates may still be open at the end of a training for units that go."""

    allocator: Allocator = GlobalRanking()
    """Turns the scores into a plan; the class says which one does by default."""
    price: Price | None = None
    """Costs, for an allocator that compares them."""
    model: nn.Module
    sites: Sites
    budget: Budget
    generator: torch.Generator
    gates: Gates
    steps: int
    rounds: int = 1
    batches: int = 1
    """Batches of one round of a method that observes."""
    group: str = ""
    """Of the batch that is observed."""
    trains_model: bool = True
    """Whether the model's own parameters are trained beside what the method trains."""

    @classmethod
    def check(cls, budget: Budget) -> None:
        """Raise MethodError for units that the method does not prune, and for a time: what takes
        how long, no method knows."""
        if budget.is_timed:
            raise MethodError(
                f"expected a budget of fractions, got {budget}: `compress` is what meets a time"
            )
        unable = budget.kinds() - cls.produces
        if unable:
            raise MethodError(
                f"{cls.__name__} prunes {', '.join(sorted(cls.produces))}; "
                f"the budget names {', '.join(sorted(unable))}"
            )

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        """Take in what to prune and how much, before any data. Raises MethodError and BudgetError
        for what the method cannot do to this model."""
        self.check(budget)
        self.model, self.sites = model, sites
        self.budget = in_blocks(budget, sites, next(model.parameters()).device)
        self.generator = torch.Generator().manual_seed(seed)
        self.units()  # refuses blocks and patterns that do not fit

    def observe(self, batch: Batch) -> None:
        """Read one calibration batch; the model may run, but must be left as it was."""

    def passes(self) -> int:
        """How often it reads all batches, once `batches` says how many there are."""
        return self.rounds

    def end_round(self) -> None:
        """A pass over the batches is complete."""

    def open(self, gates: Gates) -> None:
        """The gates are open, nothing has run; parameters of the method's own are made here."""
        self.gates = gates

    def begin(self, steps: int) -> None:
        """A training of `steps` optimizer steps begins. Raises MethodError for schedules that do
        not fit into it."""
        self.steps = steps

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the method's own, as groups of an optimizer."""
        return []

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        """The model is about to run on these keyword inputs, in training or evaluation mode."""

    def penalty(self) -> Tensor | None:
        """Return what the loss of the forward pass just made grows by."""
        return None

    def after_backward(self, step: int) -> None:
        """Gradients of step `step`, from 0, are complete: finite, unscaled, not yet clipped."""

    def after_step(self, step: int) -> None:
        """The weights have moved; the gradients are still there, clipped."""

    def close(self) -> None:
        """Training is over: fold what only training needed into the weights."""

    def figures(self) -> dict[str, float]:
        """Return the numbers worth logging."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all the method has learnt: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""

    def scores(self) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def plan(self) -> SparsityPlan:
        """The plan that meets the budget. Raises MethodError for scores that are not finite."""
        return self.allocated(self.budget.asked())

    def allocated(self, fractions: Mapping[str, float]) -> SparsityPlan:
        """The plan that removes `fractions` of the kinds of the budget by the scores as they are.

        Raises MethodError for scores that are not finite."""
        scores = self.scores()
        for name, score in scores.items():
            if not bool(torch.isfinite(score).all()):
                raise MethodError(
                    f"expected finite scores, but those of {name} hold NaN or infinity"
                )
        return self.allocator.allocate(scores, self.sites, self.budget, fractions, self.price)

    def units(self) -> dict[str, tuple[int, ...]]:
        """Score shape of every site the budget lets this method prune, in model order.

        Raises BudgetError where the block does not divide a linear."""
        kinds, shapes = self.budget.kinds(), {}
        for site in self.sites:
            if site.kind in ("heads", "neurons") and site.kind in kinds:
                shapes[site.name] = site.shape
            if site.kind == "module" and "modules" in kinds and site.part != "layer":
                shapes[site.name] = site.shape
            if site.kind == "linear" and kinds & set(Budget.OF_LINEARS):
                bn, bk = self._tile()
                (n, k) = site.shape
                if n % bn or k % bk:
                    block = f"block {bn}" if bn == bk else f"block {(bn, bk)}"
                    raise BudgetError(f"{block} does not divide {site.name} of shape {(n, k)}")
                blocks = "blocks" in kinds
                shapes[site.name] = (n // bn, k // bk) if blocks else (n, k)
        return shapes

    def linear_weight(self, layer: int, role: str) -> Tensor:
        """The weight `[N, K]` of one linear: a parameter, or a view of one that holds more."""
        return self.sites.linear(self.model, layer, role).weight

    def linear_weights(self) -> dict[str, nn.Parameter]:
        """The weight of every linear, by site."""
        found: dict[str, nn.Parameter] = {}
        for site in self.sites.of_kind("linear"):
            weight = self.linear_weight(site.layer, site.part)
            if not isinstance(weight, nn.Parameter):
                raise MethodError(
                    f"expected linears that hold their weight alone, to train what is in it, but "
                    f"{site.name} is a part of a larger one, or transposed"
                )
            found[site.name] = weight
        return found

    def one_per_head(self) -> Tensor:
        """Uniform start of one number per head of the model, `[heads]`, float64, after Xavier for
        the matrix of attentions by heads (Glorot and Bengio 2010)."""
        sizes = [site.shape[0] for site in self.sites.of_kind("heads")]
        bound = (6 / (len(sizes) + sizes[0])) ** 0.5
        start = torch.rand(sum(sizes), generator=self.generator, dtype=torch.float64)
        device = next(self.model.parameters()).device
        return start.mul_(2).sub_(1).mul_(bound).to(device)

    def heads_by_site(self, values: Tensor) -> dict[str, Tensor]:
        """One number per head of the model, `[..., heads]`, as one tensor per site of heads."""
        found = self.sites.of_kind("heads")
        parts = torch.split(values, [site.shape[0] for site in found], -1)
        return {site.name: part for site, part in zip(found, parts, strict=True)}

    def _tile(self) -> tuple[int, int]:
        if self.budget.patterns is not None:
            return self.budget.pattern_block
        return self.budget.tile if self.budget.blocks is not None else (1, 1)
