"""What a model folder holds: what was kept, how that came to be, and what `convert` decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from secateurs.architectures.sites import find_sites
from secateurs.cli.tables import layers_kept
from secateurs.conversion.report import Explanation, conversion_of, explain
from secateurs.plan import SparsityPlan
from secateurs.storage.model_folders import is_pruned, open_model


@dataclass(frozen=True)
class Contents:
    """What was read of a model folder.

    Attributes:
        model: the name of its class.
        layers: as `layers_kept` returns them.
        density: as `Sites.density` returns it.
        notes: of the plan.
        decisions: of `convert`; none of a stock model.
        precision: in which linears compute, where it is not the model's own dtype.
    """

    model: str
    family: str
    dtype: str
    precision: str | None
    layers: Sequence[Mapping[str, Any]]
    density: Mapping[str, float]
    notes: Mapping[str, Any]
    decisions: Explanation

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "decisions": [asdict(decision) for decision in self.decisions]}


def contents_of(folder: str) -> Contents:
    """Read a model folder, stock or pruned. Raises CheckpointError if there is no model."""
    model: nn.Module = open_model(folder)
    decisions, precision = Explanation(), None
    if is_pruned(folder):
        record = conversion_of(model)
        sites, plan, precision = record.sites, record.plan, record.precision
        decisions = explain(model)
    else:
        sites, plan = find_sites(model), SparsityPlan()
    return Contents(
        model=type(model).__name__,
        family=sites.architecture.model_type,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        precision=precision,
        layers=layers_kept(sites, plan),
        density=sites.density(plan),
        notes=dict(plan.notes),
        decisions=decisions,
    )
