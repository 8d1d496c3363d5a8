"""The pruning methods: one file each, one row each in METHODS."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateurs.checks import fit_options
from secateurs.errors import MethodError
from secateurs.pruning.allocation import (
    ALLOCATORS,
    Allocator,
    Price,
    allocator_options,
    make_allocator,
)
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.methods.admm_pattern import AdmmPatternPruner
from secateurs.pruning.methods.cross_lingual import CrossLingualPruner
from secateurs.pruning.methods.dcil import DCILPruner
from secateurs.pruning.methods.dsp import DSPPruner
from secateurs.pruning.methods.gradient import GradientPruner
from secateurs.pruning.methods.gradual_magnitude import GradualMagnitudePruner
from secateurs.pruning.methods.kprune import KPrunePruner
from secateurs.pruning.methods.layerwise_admm import LayerwiseAdmmPruner
from secateurs.pruning.methods.magnitude import MagnitudePruner
from secateurs.pruning.methods.mlpruning import MLPruner
from secateurs.pruning.methods.obs import ObsPruner
from secateurs.pruning.methods.platon import PlatonPruner
from secateurs.pruning.methods.random import RandomPruner
from secateurs.pruning.methods.sensi_bert import SensiBertPruner
from secateurs.pruning.methods.seven import SevenPrePruner, SevenPruner
from secateurs.pruning.methods.smp import SMPPruner
from secateurs.pruning.methods.snip_identity import SnipIdentityPruner
from secateurs.pruning.methods.voita import VoitaPruner

__all__ = [
    "METHODS",
    "Method",
    "check_option_names",
    "check_options",
    "make_pruner",
    "option_owner",
]


@dataclass(frozen=True)
class Method:
    """One row of METHODS."""

    name: str
    pruner: type[Pruner]
    summary: str

    @property
    def produces(self) -> frozenset[str]:
        """Kinds of units the method can remove."""
        return self.pruner.produces

    @property
    def needs(self) -> Needs:
        return self.pruner.needs

    @property
    def options(self) -> list[str]:
        """Names of what can be set."""
        return list(inspect.signature(self.pruner).parameters)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("random", RandomPruner, "random units: the floor every method must beat"),
        Method("magnitude", MagnitudePruner, "units with the smallest weights"),
        Method(
            "gradient",
            GradientPruner,
            "units the loss, or the distance to the dense model, is least sensitive to",
        ),
        Method("cross_lingual", CrossLingualPruner, "heads that the loss of no language hangs on"),
        Method("kprune", KPrunePruner, "units that add little to predictions and to the output"),
        Method("obs", ObsPruner, "units whose part of the output the rest can take over"),
        Method(
            "layerwise_admm",
            LayerwiseAdmmPruner,
            "weights that others of the same linear make up for best",
        ),
        Method("dsp", DSPPruner, "a differentiable choice of exactly k heads"),
        Method("voita", VoitaPruner, "heads whose stochastic gates close under an L0 penalty"),
        Method("snip_identity", SnipIdentityPruner, "heads or sub-layers whose outputs stay small"),
        Method("sensi_bert", SensiBertPruner, "units of sub-layers the loss hangs on least"),
        Method("smp", SMPPruner, "heads whose attention maps a trained network scores low"),
        Method("mlpruning", MLPruner, "heads and neurons, then blocks, by shares that are learnt"),
        Method("admm_pattern", AdmmPatternPruner, "weights off a pattern the loss is drawn to"),
        Method("gradual_magnitude", GradualMagnitudePruner, "small weights, while training"),
        Method("platon", PlatonPruner, "weights neither important nor uncertain; they may return"),
        Method("dcil", DCILPruner, "small weights, which learn from a dense path and may return"),
        Method("seven", SevenPruner, "weights without a steady say in the loss, while training"),
        Method("seven_pre", SevenPrePruner, "the same before training, weights frozen"),
    )
}


def option_owner(
    method: str, name: str, allocator: str | Allocator | None = None
) -> type[Pruner] | type[Allocator]:
    """Find the class that takes the option `name`: the method's, or its allocator's. Raises
    MethodError if neither does."""
    row = METHODS[method]
    if name in row.options:
        return row.pruner
    kind = _allocator_class(row.pruner, allocator)
    of_allocator = [] if kind is None else allocator_options(kind)
    if kind is not None and name in of_allocator:
        return kind
    raise MethodError(f"{method} has the options {[*row.options, *of_allocator]}, got {name!r}")


def check_option_names(
    method: str, names: Iterable[str], allocator: str | Allocator | None = None
) -> None:
    """Raise MethodError for a name that is no option of `method` or of its allocator."""
    for name in names:
        option_owner(method, name, allocator)


def check_options(
    method: str, options: Mapping[str, Any], allocator: str | Allocator | None = None
) -> dict[str, Any]:
    """Return `options` of `method` and of its allocator as they take them. Raises MethodError for
    an unknown method, allocator or option, ArgumentError for a value of another kind."""
    if method not in METHODS:
        raise MethodError(f"expected a method in {', '.join(METHODS)}; got {method!r}")
    _allocator_class(METHODS[method].pruner, allocator)
    return {
        name: fit_options(option_owner(method, name, allocator), {name: value})[name]
        for name, value in options.items()
    }


def make_pruner(
    method: str,
    *,
    allocator: str | Allocator | None = None,
    price: Price | None = None,
    **options: Any,
) -> Pruner:
    """Make the method `method` of METHODS with its allocator.

    Args:
        allocator: a name in ALLOCATORS, an allocator, or None for the method's own.
        price: for an allocator that compares costs.
        options: of the method, and of an allocator that is not an object yet.

    Raises as `check_options`, and MethodError for values out of range, for an allocator of a
    method that decides for itself, and for a price without an allocator that uses it, or the
    reverse.
    """
    options = check_options(method, options, allocator)
    row = METHODS[method]
    of_method = {name: value for name, value in options.items() if name in row.options}
    of_allocator = {name: value for name, value in options.items() if name not in row.options}
    pruner = row.pruner(**of_method)
    if isinstance(allocator, str):
        pruner.allocator = make_allocator(allocator, of_allocator)
    elif allocator is not None:
        pruner.allocator = allocator
    elif of_allocator:
        pruner.allocator = make_allocator(type(pruner.allocator), of_allocator)
    if price is not None and not pruner.allocator.uses_price:
        raise MethodError("expected a price only for an allocator that uses it, got one")
    if price is None and pruner.allocator.uses_price:
        raise MethodError(f"{type(pruner.allocator).__name__} expects a price, got none")
    pruner.price = price
    return pruner


def _allocator_class(
    pruner: type[Pruner], allocator: str | Allocator | None
) -> type[Allocator] | None:
    """The class whose options can be set: of an allocator that is an object already, none."""
    if allocator is None:
        return None if pruner.chooses else type(pruner.allocator)
    if pruner.chooses:
        raise MethodError(
            f"{pruner.__name__} decides by itself how much each layer loses: expected no "
            "allocator, got one"
        )
    if isinstance(allocator, str):
        if allocator not in ALLOCATORS:
            raise MethodError(
                f"expected an allocator in {', '.join(ALLOCATORS)}; got {allocator!r}"
            )
        return ALLOCATORS[allocator]
    return None
