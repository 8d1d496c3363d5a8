"""What a pruning method is: a scorer of units, driven over calibration data, that ends in a
plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Flag, auto
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateurs.calibration import Batch
from secateurs.errors import BudgetError, MethodError
from secateurs.plan import SparsityPlan
from secateurs.pruning.allocation import allocate
from secateurs.sites import Sites


class Needs(Flag):
    """What a method reads."""

    NOTHING = 0
    WEIGHTS = auto()
    ACTIVATIONS = auto()
    GRADIENTS = auto()
    TRAINING = auto()


@dataclass(frozen=True)
class Budget:
    """How much must go, as fractions removed, each strictly between 0 and 1.

    Args:
        heads: of all attention heads.
        neurons: of all FFN neurons.
        blocks: of all tiles of size `block` in the layers' linears.
        parameters: of the weights in the layers' linears; heads and neurons go in equal shares.
        macs: of the layers' multiply-accumulates at `seq_len` tokens; likewise.

    Raises BudgetError for no fraction, one out of range, or `parameters` or `macs` beside any
    other.
    """

    heads: float | None = None
    neurons: float | None = None
    blocks: float | None = None
    parameters: float | None = None
    macs: float | None = None
    seq_len: int = 128
    block: int = 32

    FRACTIONS: ClassVar[tuple[str, ...]] = ("heads", "neurons", "blocks", "parameters", "macs")

    def __post_init__(self) -> None:
        asked = self.asked()
        if not asked:
            raise BudgetError(f"expected a budget in {', '.join(self.FRACTIONS)}, got none")
        for name, fraction in asked.items():
            if not (isinstance(fraction, (int, float)) and 0 < fraction < 1):
                raise BudgetError(
                    f"expected {name} to remove a fraction between 0 and 1, got {fraction}"
                )
        if len(asked) > 1 and asked.keys() & {"parameters", "macs"}:
            raise BudgetError(
                f"parameters and macs each stand alone in a budget, got {', '.join(asked)}"
            )
        if self.seq_len < 1 or self.block < 1:
            raise BudgetError(
                f"expected seq_len and block of at least 1, got {self.seq_len} and {self.block}"
            )

    def asked(self) -> dict[str, float]:
        """The fractions given, by name."""
        return {n: f for n in self.FRACTIONS if (f := getattr(self, n)) is not None}

    def kinds(self) -> frozenset[str]:
        """Kinds of units that may go."""
        total = self.asked().keys() & {"parameters", "macs"}
        return frozenset(("heads", "neurons") if total else self.asked())

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `heads=0.5,neurons=0.5`."""
        known = {f.name: f for f in fields(cls)}
        values: dict[str, float | int] = {}
        for item in text.split(","):
            name, _, value = item.partition("=")
            name = name.strip()
            if name not in known:
                raise BudgetError(
                    f"expected a budget like heads=0.5,neurons=0.5 in {', '.join(known)}, "
                    f"got {item!r}"
                )
            try:
                values[name] = int(value) if name in ("seq_len", "block") else float(value)
            except ValueError:
                raise BudgetError(f"expected a number for {name}, got {value!r}") from None
        return cls(**values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ", ".join(f"{name}={fraction:g}" for name, fraction in self.asked().items())


class Pruner:
    """One pruning method. A subclass is one file, one row in METHODS, and fills in what it needs
    of:

    `start` (called once), `observe` (each calibration batch, `rounds` times over), `end_round`, and
    `scores`. Scores are tensors by site name (`layers.I.heads` `[H]`, `layers.I.neurons` `[F]`,
    `layers.I.ROLE` `[N/bn, K/bk]`); the lowest go first, compared over the whole model.
    """

    produces: ClassVar[frozenset[str]]
    needs: ClassVar[Needs]

    model: nn.Module
    sites: Sites
    budget: Budget
    generator: torch.Generator
    rounds: int = 1

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        unable = budget.kinds() - self.produces
        if unable:
            raise MethodError(
                f"{type(self).__name__} prunes {', '.join(sorted(self.produces))}; "
                f"the budget names {', '.join(sorted(unable))}"
            )
        self.model, self.sites, self.budget = model, sites, budget
        self.generator = torch.Generator().manual_seed(seed)

    def observe(self, batch: Batch) -> None:
        """Read one calibration batch; the model may run, but must be left as it was."""

    def end_round(self) -> None:
        """A pass over the batches is complete."""

    def scores(self) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def plan(self) -> SparsityPlan:
        """The plan that meets the budget. Raises MethodError for scores that are not finite."""
        scores = self.scores()
        for name, score in scores.items():
            if not bool(torch.isfinite(score).all()):
                raise MethodError(
                    f"expected finite scores, but those of {name} hold NaN or infinity"
                )
        return allocate(
            scores,
            self.sites,
            self.budget.asked(),
            self.budget.seq_len,
            (self.budget.block, self.budget.block),
        )

    def units(self) -> dict[str, tuple[int, ...]]:
        """Score shape of every site the budget lets this method prune, in model order.

        Raises BudgetError where the block does not divide a linear."""
        kinds, shapes = self.budget.kinds(), {}
        for site in self.sites:
            if site.kind in ("heads", "neurons") and site.kind in kinds:
                shapes[site.name] = site.shape
            if site.kind == "linear" and "blocks" in kinds:
                (n, k), b = site.shape, self.budget.block
                if n % b or k % b:
                    raise BudgetError(f"block {b} does not divide {site.name} of shape {(n, k)}")
                shapes[site.name] = (n // b, k // b)
        return shapes
