"""The pruning methods: one file each, one row each in METHODS."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secateurs.checks import fit_options
from secateurs.errors import MethodError
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.methods.admm_pattern import AdmmPatternPruner
from secateurs.pruning.methods.dsp import DSPPruner
from secateurs.pruning.methods.gradient import GradientPruner
from secateurs.pruning.methods.magnitude import MagnitudePruner
from secateurs.pruning.methods.random import RandomPruner
from secateurs.pruning.methods.seven import SevenPrePruner, SevenPruner
from secateurs.pruning.methods.smp import SMPPruner
from secateurs.pruning.methods.snip_identity import SnipIdentityPruner
from secateurs.pruning.methods.voita import VoitaPruner

__all__ = ["METHODS", "Method", "check_option_names", "check_options", "make_pruner"]


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
        Method("dsp", DSPPruner, "a differentiable choice of exactly k heads"),
        Method("voita", VoitaPruner, "heads whose stochastic gates close under an L0 penalty"),
        Method("snip_identity", SnipIdentityPruner, "heads or sub-layers whose outputs stay small"),
        Method("smp", SMPPruner, "heads whose attention maps a trained network scores low"),
        Method("admm_pattern", AdmmPatternPruner, "weights off a pattern the loss is drawn to"),
        Method("seven", SevenPruner, "weights without a steady say in the loss, while training"),
        Method("seven_pre", SevenPrePruner, "the same before training, weights frozen"),
    )
}


def check_option_names(method: str, names: Iterable[str]) -> None:
    """Raise MethodError for a name that is no option of `method`."""
    known = METHODS[method].options
    for name in names:
        if name not in known:
            raise MethodError(f"{method} has the options {known}, got {name!r}")


def check_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of `method` as it takes them. Raises MethodError for an unknown method or option,
    ArgumentError for a value of another kind."""
    if method not in METHODS:
        raise MethodError(f"expected a method in {', '.join(METHODS)}; got {method!r}")
    check_option_names(method, options)
    return fit_options(METHODS[method].pruner, options)


def make_pruner(method: str, **options: Any) -> Pruner:
    """The method `method` of METHODS. Raises as `check_options`, and MethodError for values out of
    range."""
    fitting = check_options(method, options)
    return METHODS[method].pruner(**fitting)
