"""Attention patterns: rules on positions, and the blocks of scores that a rule leaves.

A rule says which keys a query may see, whatever the lengths; `layout` turns the rules of the heads
into lists of blocks for one pair of lengths, once. Rules combine by `|` and `&`:

    pattern = Local(128) | Sinks(4)
    blocks = layout(pattern, tq=2048, tk=2048, block=64, causal=True)
    y = ops.attention(q, k, v, causal=True, pattern=blocks)
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import chain

import torch
from torch import Tensor

from secateurs.errors import PatternError
from secateurs.lasting import lasting

BLOCKS = (16, 32, 64, 128)
FARTHEST = 2**31 - 1  # position that a rule may name


@dataclass(frozen=True)
class Rule:
    """Which keys a query may see, by their positions."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """Bool, of the shape that integer positions `q` and `k` broadcast to: True where the query
        at `q` may see the key at `k`."""
        raise NotImplementedError

    def __or__(self, other: Rule) -> Rule:
        return Union((self, other))

    def __and__(self, other: Rule) -> Rule:
        return Intersection((self, other))


@dataclass(frozen=True)
class Dense(Rule):
    """Every query sees every key."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q == q) & (k == k)


@dataclass(frozen=True)
class Local(Rule):
    """Keys at most `window` positions away, on either side."""

    window: int

    def __post_init__(self) -> None:
        _check("Local", "window", self.window, 0)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() <= self.window


@dataclass(frozen=True)
class Strided(Rule):
    """Keys a multiple of `stride` positions away."""

    stride: int

    def __post_init__(self) -> None:
        _check("Strided", "stride", self.stride, 1)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q - k) % self.stride == 0


@dataclass(frozen=True)
class Global(Rule):
    """The first `n` positions see everything and are seen by everything."""

    n: int

    def __post_init__(self) -> None:
        _check("Global", "n", self.n, 0)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q < self.n) | (k < self.n)


@dataclass(frozen=True)
class Sinks(Rule):
    """Every query sees the first `n` keys."""

    n: int

    def __post_init__(self) -> None:
        _check("Sinks", "n", self.n, 0)

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q == q) & (k < self.n)


@dataclass(frozen=True)
class VerticalSlash(Rule):
    """Every query sees the keys at the positions `vertical`, and the key `s` positions before it
    for every `s` in `slash`."""

    vertical: tuple[int, ...] = ()
    slash: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vertical", "slash"):
            positions = tuple(getattr(self, name))
            for position in positions:
                _check("VerticalSlash", name, position, 0)
            object.__setattr__(self, name, tuple(sorted(set(positions))))

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        vertical = torch.isin(k, torch.tensor(self.vertical, dtype=k.dtype, device=k.device))
        distance = q - k
        slash = torch.tensor(self.slash, dtype=distance.dtype, device=distance.device)
        return vertical | torch.isin(distance, slash)


@dataclass(frozen=True)
class Combined(Rule):
    """Several rules as one; those of its own kind among them count as what they combine."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        rules = tuple(self.rules)
        if not rules or not all(isinstance(rule, Rule) for rule in rules):
            raise PatternError(f"{type(self).__name__} expects rules, got {self.rules!r}")
        flat = (r.rules if isinstance(r, type(self)) else (r,) for r in rules)
        object.__setattr__(self, "rules", tuple(chain.from_iterable(flat)))


@dataclass(frozen=True)
class Union(Combined):
    """Allow what any of `rules` allows."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return reduce(operator.or_, (rule.allows(q, k) for rule in self.rules))


@dataclass(frozen=True)
class Intersection(Combined):
    """Allow what all of `rules` allow."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return reduce(operator.and_, (rule.allows(q, k) for rule in self.rules))


def allowed(rules: Sequence[Rule], tq: int, tk: int, device: torch.device | str = "cpu") -> Tensor:
    """What `rules`, one for each head, allow of `tq` queries by `tk` keys, the last query at the
    last key: bool `[heads, tq, tk]`."""
    query = torch.arange(tq, device=device)[:, None] + (tk - tq)
    key = torch.arange(tk, device=device)
    return torch.stack([rule.allows(query, key) for rule in rules])


@lru_cache(maxsize=256)
def allowed_pairs(rule: Rule, tokens: int) -> int:
    """How many pairs of a query and a key of a sequence a rule allows."""
    key, some = torch.arange(tokens), torch.arange(tokens).split(256)
    return sum(int(rule.allows(query[:, None], key).sum()) for query in some)


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """The blocks of a score matrix that exist, row of blocks by row of blocks, per head.

    Attributes:
        indptr: int32 `[heads, ceil(Tq / block) + 1]`; heads is 1 where all heads share one pattern.
            The blocks of head h in block row r are `indptr[h, r] .. indptr[h, r + 1]`.
        indices: int32 `[blocks]`, which block of keys each is, ascending within a row.
        partial: int32 `[blocks]`, -1 where a whole block is allowed, else its mask in `masks`.
        masks: bool `[P, block, block]`, `[query, key]`, True where a key may be seen.
        shape: `(Tq, Tk)`.
    """

    indptr: Tensor
    indices: Tensor
    partial: Tensor
    masks: Tensor
    shape: tuple[int, int]

    @property
    def block(self) -> int:
        return self.masks.shape[-1]

    @property
    def density(self) -> float:
        """Blocks that exist over all blocks."""
        heads, rows = self.indptr.shape[0], self.indptr.shape[1] - 1
        columns = -(-self.shape[1] // self.block)
        return self.indices.numel() / max(1, heads * rows * columns)

    def validate(self) -> BlockLayout:
        """Return self, or raise PatternError: a kernel trusts these indices. `layout` makes none
        but valid ones; call this of one made by hand."""
        (tq, tk), block = self.shape, max(1, self.block)
        rows, columns, blocks = -(-tq // block), -(-tk // block), self.indices.numel()
        heads = self.indptr.shape[0] if self.indptr.dim() == 2 else 0
        if self.indptr.shape != (heads, rows + 1) or not heads:
            raise PatternError(
                f"expected indptr [heads, {rows + 1}] for {tq} queries in blocks of {block}, got "
                f"{tuple(self.indptr.shape)}"
            )
        bounds = self.indptr.flatten()
        if int(bounds[0]) != 0 or int(bounds[-1]) != blocks or bool((bounds.diff() < 0).any()):
            raise PatternError(f"indptr must rise from 0 to the {blocks} blocks, head by head")
        if blocks and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < columns:
            raise PatternError(f"blocks of keys must lie in 0..{columns - 1}")
        masks = len(self.masks)
        if self.partial.shape != self.indices.shape or (
            blocks and not -1 <= int(self.partial.min()) <= int(self.partial.max()) < masks
        ):
            raise PatternError(f"partial must name one of {masks} masks, or -1, for each block")
        return self

    def to(self, device: torch.device | str) -> BlockLayout:
        return BlockLayout(
            self.indptr.to(device),
            self.indices.to(device),
            self.partial.to(device),
            self.masks.to(device),
            self.shape,
        )


def layout(
    rules: Rule | Sequence[Rule],
    tq: int,
    tk: int,
    *,
    offset: int | None = None,
    block: int = 64,
    causal: bool = False,
    device: torch.device | str = "cpu",
) -> BlockLayout:
    """The blocks that `rules` leave of `tq` queries by `tk` keys. Cached: the same request returns
    the same tensors.

    Args:
        rules: one rule for all heads, or one per head.
        offset: position of the first query, that of the first key being 0; None: `tk - tq`, the
            last query is at the last key.
        block: 16, 32, 64 or 128 queries by as many keys.
        causal: leave out keys behind the query as well, so that no block is visited in vain. An
            operation that is itself causal wants the offset to be None.
        device: where the tensors shall be.

    Raises:
        PatternError: no rules, negative lengths, or another block size.
    """
    heads = (rules,) if isinstance(rules, Rule) else tuple(rules)
    if not heads or not all(isinstance(rule, Rule) for rule in heads):
        raise PatternError(f"expected a rule, or one for each head, got {rules!r}")
    if tq < 0 or tk < 0 or block not in BLOCKS:
        raise PatternError(
            f"expected lengths from 0 and a block among {BLOCKS}, got {tq} x {tk} and {block}"
        )
    if len(set(heads)) == 1:
        heads = heads[:1]
    return _layout(heads, tq, tk, tk - tq if offset is None else offset, block, causal, str(device))


@lru_cache(maxsize=256)
@lasting
def _layout(
    heads: tuple[Rule, ...], tq: int, tk: int, offset: int, block: int, causal: bool, device: str
) -> BlockLayout:
    if device != "cpu":
        return _layout(heads, tq, tk, offset, block, causal, "cpu").to(device)
    known: dict[bytes, int] = {}  # masks repeat along diagonals and between heads
    masks: list[Tensor] = []
    rows_of: dict[Rule, list[tuple[list[int], list[int]]]] = {}
    for rule in heads:
        if rule not in rows_of:
            starts = range(0, tq, block)
            rows_of[rule] = [
                _block_row(rule, start, tq, tk, offset, block, causal, known, masks)
                for start in starts
            ]
    indptr: list[list[int]] = []
    indices: list[int] = []
    partial: list[int] = []
    for rule in heads:
        indptr.append([len(indices)])
        for columns, which in rows_of[rule]:
            indices += columns
            partial += which
            indptr[-1].append(len(indices))
    return BlockLayout(
        torch.tensor(indptr, dtype=torch.int32),
        torch.tensor(indices, dtype=torch.int32),
        torch.tensor(partial, dtype=torch.int32),
        torch.stack(masks) if masks else torch.zeros(0, block, block, dtype=torch.bool),
        (tq, tk),
    ).validate()


def _block_row(
    rule: Rule,
    start: int,
    tq: int,
    tk: int,
    offset: int,
    block: int,
    causal: bool,
    known: dict[bytes, int],
    masks: list[Tensor],
) -> tuple[list[int], list[int]]:
    """The columns of one row of blocks, and the mask of each (-1: none); new masks are added."""
    columns = -(-tk // block)
    query, key = torch.arange(start, start + block)[:, None], torch.arange(columns * block)
    exists = (query < tq) & (key < tk)
    allowed = rule.allows(query + offset, key) & exists
    if causal:
        allowed &= key <= query + offset
    tiles, exists = (t.view(block, columns, block).transpose(0, 1) for t in (allowed, exists))
    found = tiles.flatten(1).any(1)
    full = (tiles == exists).flatten(1).all(1)
    chosen = found.nonzero().flatten().tolist()
    which = []
    for column in chosen:
        if full[column]:
            which.append(-1)
            continue
        tile = tiles[column].contiguous()
        number = known.setdefault(tile.numpy().tobytes(), len(masks))
        if number == len(masks):
            masks.append(tile)
        which.append(number)
    return chosen, which


def _check(rule: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PatternError(f"{rule} expects {name} to be an integer from {least}, got {value!r}")
    if value > FARTHEST:
        raise PatternError(f"{rule} expects {name} to be at most {FARTHEST}, got {value!r}")
