"""Precisions: in what a converted model computes, and which of them a search may choose among."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateurs.checks import dtype_name
from secateurs.conversion.builder import convert
from secateurs.conversion.forms import why_slow
from secateurs.errors import PlanError
from secateurs.plan import SparsityPlan
from secateurs.shells import cast_copy, shell_of

AUTO = "auto"
BFLOAT16, INT8 = "bfloat16", "int8"
ASKED = (BFLOAT16, INT8, AUTO)
"""What may be asked for beside the model's own dtype."""


@dataclass(frozen=True)
class Precision:
    """In what a converted model computes.

    Attributes:
        name: of its linears' weights and inputs.
        dtype: of the whole model, None for the one it has.
        codes: the `precision` of `convert`.
    """

    name: str
    dtype: torch.dtype | None = None
    codes: str | None = None

    def copy(self, model: nn.Module, *, shares: bool = False) -> nn.Module:
        """A copy of `model` in the dtype. One that `shares` has the tensors of `model` where that
        is its own dtype: they must not be changed."""
        if self.dtype is not None:
            return cast_copy(model, self.dtype)
        return shell_of(model) if shares else copy.deepcopy(model)

    def converted(
        self,
        copied: nn.Module,
        plan: SparsityPlan,
        tokens: int,
        batches: Sequence[Mapping[str, Any]] | None = None,
    ) -> nn.Module:
        """What `copy` gave, converted in place, for calls of so many tokens; by `batches`, where
        they are given, it is rounded with less error."""
        rounded_by = None if self.codes is None else batches
        return convert(
            copied, plan, tokens=tokens, precision=self.codes, batches=rounded_by, inplace=True
        )


def own(model: nn.Module) -> Precision:
    """The precision of a model as it is."""
    return Precision(dtype_name(next(model.parameters()).dtype))


def asked_for(model: nn.Module, name: str | None) -> tuple[list[Precision], dict[str, str]]:
    """The precisions that a search over `model` tries, and why it leaves others out, by name.

    None is the model's own, "auto" is all that this machine has products for. Raises PlanError for
    a name that is none, and for bfloat16 where the caller would have to cast what the model takes.
    """
    as_it_is = own(model)
    others = {
        BFLOAT16: (Precision(BFLOAT16, torch.bfloat16), _why_not_bfloat16(model)),
        INT8: (Precision(INT8, codes=INT8), None),
    }
    if name is None or name == as_it_is.name:
        return [as_it_is], {}
    if name in others:
        precision, refusal = others[name]
        if refusal is not None:
            raise PlanError(f"expected a precision that fits the model, got {name}: {refusal}")
        return [precision], {}
    if name != AUTO:
        raise PlanError(f"expected precision None or {' or '.join(ASKED)}, got {name!r}")
    tried, left_out = [as_it_is], {}
    for other, (precision, refusal) in others.items():
        if other == as_it_is.name:
            continue
        slow = refusal or why_slow(other, next(model.parameters()).device)
        if slow is None:
            tried.append(precision)
        else:
            left_out[other] = slow
    return tried, left_out


def _why_not_bfloat16(model: nn.Module) -> str | None:
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return "the model takes numbers, and would take them in bfloat16 only"
    return None
