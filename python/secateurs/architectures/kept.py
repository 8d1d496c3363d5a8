"""The sizes of a layer, and what a plan leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.architectures.schema import Architecture, Side
from secateurs.plan import BlockMask, PatternMask
from secateurs.plan.attention_rules import Dense, Rule, allowed_pairs
from secateurs.plan.quantization import Levels


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer: query heads, key/value heads, width of a head, FFN neurons, width of the
    model, heads of cross-attention; and how it is built."""

    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    hidden: int
    architecture: Architecture
    cross_heads: int = 0

    @property
    def sizes(self) -> list[int]:
        """What a plan remembers of the layer."""
        cross = [self.cross_heads] if self.architecture.cross else []
        return [self.heads, self.kv_heads, self.head_dim, self.neurons, *cross]

    def units(self) -> dict[str, int]:
        """How many units of each site of units there are, in the order of the sub-layers."""
        counts = {"heads": self.heads, "neurons": self.neurons}
        counts["cross_attention.heads"] = self.cross_heads
        return {sublayer.units: counts[sublayer.units] for sublayer in self.architecture.sublayers}

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def gated(self) -> bool:
        """Whether the FFN is gated."""
        return self.architecture.ffn.gated

    def linears(self) -> dict[str, tuple[int, int]]:
        """`(N, K)` of each linear, by role."""
        sizes = {
            "hidden": self.hidden,
            "heads": self.heads * self.head_dim,
            "kv_heads": self.kv_heads * self.head_dim,
            "cross_heads": self.cross_heads * self.head_dim,
            "neurons": self.neurons,
        }
        return {
            linear.role: (sizes[linear.rows], sizes[linear.columns])
            for linear in self.architecture.linears
        }


@dataclass(frozen=True, eq=False)
class LayerKeep:
    """What a plan leaves of one layer: whether each sub-layer stays, by its name; a bool vector of
    its units, by their site; masks and levels of weights, by role; and the rules of its attention.
    A removed sub-layer keeps nothing."""

    shape: LayerShape
    stays: Mapping[str, bool]
    units: Mapping[str, Tensor]
    blocks: Mapping[str, BlockMask]
    patterns: Mapping[str, PatternMask]
    levels: Mapping[str, Levels]
    rules: tuple[Rule, ...] | None  # of all H heads

    @property
    def attention(self) -> bool:
        return self.stays["attention"]

    @property
    def ffn(self) -> bool:
        return self.stays["ffn"]

    @property
    def heads(self) -> Tensor:
        """Bool `[H]`: those of self-attention that stay."""
        return self.units["heads"]

    @property
    def neurons(self) -> Tensor:
        """Bool `[F]`: those that stay."""
        return self.units["neurons"]

    @property
    def all_heads(self) -> int:
        """How many heads stay, those of cross-attention counted too."""
        return sum(int(keep.sum()) for part, keep in self.units.items() if part != "neurons")

    @property
    def kept_rules(self) -> tuple[Rule, ...] | None:
        """The rule of each head that stays; None where none of them hides a key."""
        if self.rules is None:
            return None
        kept = tuple(self.rules[head] for head in self.heads.nonzero()[:, 0].tolist())
        return None if all(rule == Dense() for rule in kept) else kept

    @property
    def grouped(self) -> bool:
        """Whether heads that are neighbours share each key/value head, in groups of one size."""
        heads, kv_heads = int(self.heads.sum()), int(self.kv_heads.sum())
        even = torch.arange(heads) // max(1, heads // max(1, kv_heads))
        return heads % max(1, kv_heads) == 0 and torch.equal(self.kv_of, even.to(torch.int32))

    @property
    def weights(self) -> dict[str, BlockMask | PatternMask]:
        """Every mask of a linear, by role."""
        return {**self.blocks, **self.patterns}

    @property
    def kv_heads(self) -> Tensor:
        """`[Hkv]`, True where some query head of the group stays."""
        return self.heads.view(self.shape.kv_heads, self.shape.group).any(1)

    @property
    def kv_of(self) -> Tensor:
        """int32 `[kept query heads]`: the kept key/value head each one reads."""
        old = self.heads.nonzero()[:, 0] // self.shape.group
        return (self.kv_heads.cumsum(0) - 1)[old].to(torch.int32)

    def sides(self, role: str) -> tuple[Tensor, Tensor]:
        """Bool masks of the rows `[N]` and columns `[K]` of one linear that stay."""
        linear = self.shape.architecture.linear(role)
        return self._side(linear.rows), self._side(linear.columns)

    def elements(self, role: str) -> Tensor:
        """Bool `[N, K]`, True where an element of the linear stays."""
        rows, columns = self.sides(role)
        keep = rows[:, None] & columns
        if role in self.weights:
            keep &= self.weights[role].elements()
        return keep

    def rounded(self, role: str, weight: Tensor) -> Tensor:
        """The weight `[N, K]` of one linear with each entry on its nearest level, if it has any."""
        return self.levels[role].nearest(weight) if role in self.levels else weight

    def parameters(self) -> int:
        """Weights of the linears that stay (biases and norms are not counted)."""
        return sum(self._count(role) for role in self.shape.linears())

    def macs(self, seq_len: int) -> int:
        """Multiply-accumulates per token in a sequence of `seq_len` tokens: linears, scores and
        weighted sums, of the keys that rules allow. An encoder's sequence is as long."""
        pairs = seq_len * seq_len * self.all_heads
        if self.kept_rules is not None:
            pairs = sum(allowed_pairs(rule, seq_len) for rule in self.kept_rules)
        return self.parameters() + 2 * self.shape.head_dim * pairs // max(1, seq_len)

    def _count(self, role: str) -> int:
        if role in self.weights:
            return int(self.elements(role).sum())
        rows, columns = self.sides(role)
        return int(rows.sum()) * int(columns.sum())

    def _side(self, side: Side) -> Tensor:
        """Bool mask of one side of a linear, True where it stays."""
        if side == "hidden":
            return torch.ones(self.shape.hidden, dtype=torch.bool)
        if side == "neurons":
            return self.neurons
        if side == "kv_heads":
            heads = self.kv_heads
        else:
            heads = self.units["heads" if side == "heads" else "cross_attention.heads"]
        return heads.repeat_interleave(self.shape.head_dim)
