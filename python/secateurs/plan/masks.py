"""Masks: what stays at one site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateurs.checks import door, fit
from secateurs.errors import PlanError
from secateurs.plan.attention_rules import Dense, Rule
from secateurs.plan.rule_records import record_of
from secateurs.plan.site import Site


@dataclass(frozen=True, eq=False)
class Mask:
    """What stays at one site."""

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """What it covers."""
        raise NotImplementedError

    @door
    def check(self, site: Site) -> None:
        """Raise PlanError unless this mask fits `site`."""
        if site.kind != self.kind:
            raise PlanError(
                f"site {site.name} takes a mask of kind {site.kind!r}, got {self.kind!r}"
            )
        if self.shape != self.expected_shape(site):
            raise PlanError(
                f"mask of {site.name} must have shape {self.expected_shape(site)}, got {self.shape}"
            )

    @door
    def expected_shape(self, site: Site) -> tuple[int, ...]:
        return site.shape

    @door
    def merge(self, other: Mask) -> Mask:
        """Keep what both masks keep."""
        raise NotImplementedError

    @door
    def equal(self, other: Mask) -> bool:
        raise NotImplementedError

    def header(self) -> dict[str, Any]:
        """What a file says of it, in JSON's types."""
        return {"kind": self.kind}

    def _check_mergeable(self, other: Mask) -> None:
        if type(self) is not type(other) or self.shape != other.shape:
            raise PlanError(
                f"masks to merge must be of one kind and shape, got {self.kind} {self.shape} and "
                f"{other.kind} {other.shape}"
            )


@dataclass(frozen=True, eq=False)
class KeepMask(Mask):
    """Which units of one site stay: `keep` is a bool tensor, True where the unit stays; a copy of
    the one given."""

    keep: Tensor
    dimensions: ClassVar[int] = 1  # of `keep`

    def __post_init__(self) -> None:
        if not isinstance(self.keep, Tensor) or self.keep.dtype != torch.bool:
            tensor = isinstance(self.keep, Tensor)
            came = str(self.keep.dtype) if tensor else type(self.keep).__name__
            raise PlanError(f"{type(self).__name__} expects a bool tensor `keep`, got {came}")
        if self.keep.is_meta or self.keep.layout != torch.strided:
            odd = "one on the meta device" if self.keep.is_meta else str(self.keep.layout)
            raise PlanError(f"{type(self).__name__} expects a dense `keep` with values, got {odd}")
        with torch.inference_mode(False):
            own = self.keep.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        object.__setattr__(self, "keep", own)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.keep.shape)

    @door
    def merge(self, other: Mask) -> Mask:
        """Keep what both masks keep."""
        self._check_mergeable(other)
        assert isinstance(other, KeepMask)
        return type(self)(self.keep & other.keep)

    @door
    def equal(self, other: Mask) -> bool:
        return isinstance(other, type(self)) and torch.equal(self.keep, other.keep)


class HeadMask(KeepMask):
    """Attention heads of one layer, `[H]`. For grouped key/value heads `H` counts query heads; a
    key/value head goes when the last query head of its group goes."""

    kind = "heads"


class NeuronMask(KeepMask):
    """FFN neurons of one layer, `[F]`: rows of up (and gate), columns of down."""

    kind = "neurons"


class ModuleMask(KeepMask):
    """A whole residual sub-layer, `[]`. A removed one adds nothing: the residual and the norm
    stay."""

    kind = "module"
    dimensions = 0


@dataclass(frozen=True, eq=False)
class TiledMask(KeepMask):
    """A mask of a linear weight `[N, K]` that is laid out in tiles of size `block`."""

    block: tuple[int, int] = (32, 32)
    kind: ClassVar[str] = "linear"
    dimensions: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        block = fit("block", self.block, tuple[int, int], PlanError)
        if min(block) < 1:
            raise PlanError(f"block must be two positive sizes (bn, bk), got {self.block}")
        object.__setattr__(self, "block", block)

    @door
    def expected_shape(self, site: Site) -> tuple[int, ...]:
        (n, k), (bn, bk) = site.shape, self.block
        if n % bn or k % bk:
            raise PlanError(f"block {self.block} does not divide {site.name} of shape {(n, k)}")
        return (n // bn, k // bk)

    @door
    def equal(self, other: Mask) -> bool:
        return super().equal(other) and self.block == getattr(other, "block", None)

    def header(self) -> dict[str, Any]:
        return {"kind": self.kind, "block": list(self.block)}

    def elements(self) -> Tensor:
        """Bool `[N, K]`, True where an element of the weight stays."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class BlockMask(TiledMask):
    """Tiles of a linear weight `[N, K]`: `keep[i, j]` is the tile at rows `i*bn`, columns `j*bk`.
    Tiles of `(1, 1)` are single weights."""

    @door
    def merge(self, other: Mask) -> Mask:
        self._check_mergeable(other)
        assert isinstance(other, BlockMask)
        if self.block != other.block:
            raise PlanError(
                f"block masks to merge must share one block size, got {self.block} and "
                f"{other.block}"
            )
        return BlockMask(self.keep & other.keep, self.block)

    def elements(self) -> Tensor:
        bn, bk = self.block
        return self.keep.repeat_interleave(bn, 0).repeat_interleave(bk, 1)


@dataclass(frozen=True, eq=False)
class PatternMask(TiledMask):
    """A regular choice of the elements of a linear weight: `keep` is `[N, K]`, a member of a family
    of `secateurs.patterns`.

    `block` is what repeats. `(v, 1)`: every `v` neighbouring outputs keep the same inputs, each
    group equally many (vector N:M; 2:4 with v = 1). `(p, q)`: each block of `p` outputs by `q`
    inputs follows one of a few patterns with equally many elements.
    """

    @door
    def expected_shape(self, site: Site) -> tuple[int, ...]:
        super().expected_shape(site)
        return site.shape

    @door
    def merge(self, other: Mask) -> Mask:
        """Itself where both are equal; else what both keep, as single weights without a pattern."""
        self._check_mergeable(other)
        assert isinstance(other, PatternMask)
        return self if self.equal(other) else BlockMask(self.keep & other.keep, (1, 1))

    def header(self) -> dict[str, Any]:
        return {"kind": "pattern", "block": list(self.block)}

    def elements(self) -> Tensor:
        return self.keep


@dataclass(frozen=True, eq=False)
class AttentionRuleMask(Mask):
    """Which keys each attention head of one layer sees: a rule of
    `secateurs.plan.attention_rules` for each, in their order. A key that padding, causality or the
    model's own mask hides stays hidden; a query that then sees none has a context of zeros.

    Positions count from the first key, padding included. Raises PlanError for anything but rules of
    the known kinds.
    """

    rules: Sequence[Rule]
    kind: ClassVar[str] = "attention_rules"

    def __post_init__(self) -> None:
        rules = tuple(fit("rules", self.rules, Sequence, PlanError))
        for rule in rules:
            record_of(rule)  # which refuses those that no file could hold
        object.__setattr__(self, "rules", rules)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rules),)

    @door
    def check(self, site: Site) -> None:
        """Raise PlanError unless `site` takes rules, one for each head, and these are as many."""
        if site.kind == self.kind and self.shape != site.shape:
            raise PlanError(
                f"expected {site.shape[0]} rules at {site.name}, one for each head, got "
                f"{len(self.rules)}"
            )
        super().check(site)

    @door
    def merge(self, other: Mask) -> Mask:
        """For each head what both rules allow."""
        self._check_mergeable(other)
        assert isinstance(other, AttentionRuleMask)
        pairs = zip(self.rules, other.rules, strict=True)
        return AttentionRuleMask([_both(mine, others) for mine, others in pairs])

    @door
    def equal(self, other: Mask) -> bool:
        return isinstance(other, AttentionRuleMask) and self.rules == other.rules

    def header(self) -> dict[str, Any]:
        return {"kind": self.kind, "rules": [record_of(rule) for rule in self.rules]}


def _both(rule: Rule, other: Rule) -> Rule:
    if rule == other or other == Dense():
        return rule
    return other if rule == Dense() else rule & other


MASKS: dict[str, type[Mask]] = {
    m.kind: m for m in (HeadMask, NeuronMask, ModuleMask, BlockMask, AttentionRuleMask)
}
MASKS["pattern"] = PatternMask
