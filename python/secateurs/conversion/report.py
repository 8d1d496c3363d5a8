"""What a conversion did at every site, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from secateurs.architectures.sites import Sites
from secateurs.checks import door
from secateurs.conversion.inherited import record_of
from secateurs.errors import PlanError
from secateurs.plan import SparsityPlan


@dataclass(frozen=True)
class SiteReport:
    """What convert did at one site, and why."""

    site: str
    action: str
    reason: str


@dataclass
class Conversion:
    """What a converted model remembers: its plan, the sites of the dense model, and every
    decision."""

    plan: SparsityPlan
    sites: Sites
    reports: list[SiteReport] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)  # of each linear
    tokens: int = 256  # that decisions are for
    precision: str | None = None  # of its linears, None: that of the dtype
    husks: list[nn.Module] = field(default_factory=list)  # of the stock layers
    stays: dict[str, str] = field(default_factory=dict)
    """Why a linear is not in that precision, by site."""


class Explanation(list[SiteReport]):
    """The decisions of a conversion; prints as a table."""

    def __str__(self) -> str:
        widths = [max((len(row[i]) for row in self._rows()), default=0) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(r.site, r.action, r.reason) for r in self]


@door
def explain(model: nn.Module) -> Explanation:
    """What was done at every site of a converted model, and why. Raises PlanError for a model not
    converted."""
    return Explanation(conversion_of(model).reports)


def conversion_of(model: nn.Module) -> Conversion:
    """The record of a converted model. Raises PlanError for any other."""
    conversion: Conversion | None = record_of(model)
    if conversion is None:
        raise PlanError(
            f"expected a model made by secateurs.convert or load, got {type(model).__name__}"
        )
    return conversion
