"""Budget: how much must go, in which units."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from secateurs.checks import brief, door, fit_fields
from secateurs.errors import BudgetError
from secateurs.plan.weight_patterns import Family, Library, TwoFour, VectorNM

PATTERNS = ("2:4", "vector", "library")
_SQUARE = (32, 32)  # outputs by inputs of a block
_M = 4  # inputs among which an N:M pattern chooses
_BLOCK = (4, 4)  # of a library
_LIBRARY = 16  # patterns of a library


@dataclass(frozen=True)
class Budget:
    """How much must go: fractions removed, each strictly between 0 and 1, or a time to meet.

    Args:
        heads: of all attention heads.
        neurons: of all FFN neurons.
        modules: of all residual sub-layers (attention and FFN).
        blocks: of all tiles in the layers' linears: of `block` outputs by inputs, such as (128, 32)
            or "128x32", or one number for both; by default 32 by 32, and for models on a GPU 128 by
            32 where that divides every linear.
        weights: of all single weights of the layers' linears.
        patterns: of the weights of the layers' linears, in every repetition of a `pattern`.
        parameters: of the weights in the layers' linears; heads and neurons go in equal shares.
        macs: of the layers' multiply-accumulates at `seq_len` tokens; likewise.
        pattern: "2:4" or "vector" (of four inputs, for each `vector` neighbouring outputs), or
            "library" (4 x 4 blocks, each of one of 16 patterns).
        latency: milliseconds that a call may take, or text such as "4ms"; for `compress`.
        speedup: over the model as transformers runs it, above 1; for `compress`.

    Raises BudgetError for no fraction, one out of range or that its pattern cannot remove, two of
    `blocks`, `weights` and `patterns`, `parameters` or `macs` beside any other, or a time beside
    anything else.
    """

    heads: float | None = None
    neurons: float | None = None
    modules: float | None = None
    blocks: float | None = None
    weights: float | None = None
    patterns: float | None = None
    parameters: float | None = None
    macs: float | None = None
    seq_len: int = 128
    block: int | str | tuple[int, int] | None = None
    pattern: str = "vector"
    vector: int = 32
    latency: float | str | None = None
    speedup: float | None = None

    TOTALS: ClassVar[tuple[str, ...]] = ("parameters", "macs")
    OF_LINEARS: ClassVar[tuple[str, ...]] = ("blocks", "weights", "patterns")
    TIMES: ClassVar[tuple[str, ...]] = ("latency", "speedup")
    FRACTIONS: ClassVar[tuple[str, ...]] = ("heads", "neurons", "modules", *OF_LINEARS, *TOTALS)

    def __post_init__(self) -> None:
        asked = self.asked()
        if self.is_timed:
            self._check_time()
        elif not asked:
            raise BudgetError(
                f"expected a budget in {', '.join(self.FRACTIONS)}, latency or speedup, got none"
            )
        for name, fraction in asked.items():
            real = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
            if not (real and 0 < fraction < 1):
                raise BudgetError(
                    f"expected {name} to remove a fraction between 0 and 1, got {brief(fraction)}"
                )
        if self.block is not None:
            object.__setattr__(self, "block", _block_size(self.block))
        fit_fields(self, BudgetError)
        if len(asked) > 1 and asked.keys() & set(self.TOTALS):
            raise BudgetError(
                f"parameters and macs each stand alone in a budget, got {', '.join(asked)}"
            )
        if len(asked.keys() & set(self.OF_LINEARS)) > 1:
            raise BudgetError(
                f"expected one of {', '.join(self.OF_LINEARS)} in a budget, got {', '.join(asked)}"
            )
        if min(self.seq_len, self.vector) < 1:
            raise BudgetError(
                f"expected seq_len and vector of at least 1, got {self.seq_len} and {self.vector}"
            )
        if self.pattern not in PATTERNS:
            raise BudgetError(f"expected a pattern in {', '.join(PATTERNS)}, got {self.pattern!r}")
        if self.patterns is not None:
            self.kept_in_pattern(self.patterns)

    @property
    def tile(self) -> tuple[int, int]:
        """The `block` of outputs by inputs, or the default one."""
        return self.block if isinstance(self.block, tuple) else _SQUARE

    @property
    def is_timed(self) -> bool:
        """Whether it asks for a time, not for units."""
        return self.latency is not None or self.speedup is not None

    def _check_time(self) -> None:
        if self.asked() or (self.latency is not None and self.speedup is not None):
            asked = [*self.asked(), *(n for n in self.TIMES if getattr(self, n) is not None)]
            raise BudgetError(
                f"latency and speedup each stand alone in a budget, got {', '.join(asked)}"
            )
        if isinstance(self.latency, str):
            number = self.latency.strip().removesuffix("ms")
            try:
                object.__setattr__(self, "latency", float(number))
            except ValueError:
                raise BudgetError(
                    f"expected a latency like 4ms, got {brief(self.latency)}"
                ) from None
        least = 1 if self.latency is None else 0
        value = self.speedup if self.latency is None else self.latency
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (real and least < float(value or 0) < math.inf):
            name = "speedup" if self.latency is None else "latency"
            raise BudgetError(f"expected a {name} above {least}, got {brief(value)}")
        if self.latency is not None:
            object.__setattr__(self, "latency", float(self.latency))

    def asked(self) -> dict[str, float]:
        """The fractions given, by name."""
        return {n: f for n in self.FRACTIONS if (f := getattr(self, n)) is not None}

    def kinds(self) -> frozenset[str]:
        """Kinds of units that may go."""
        total = self.asked().keys() & set(self.TOTALS)
        return frozenset(("heads", "neurons") if total else self.asked())

    @door
    def kept_in_pattern(self, fraction: float) -> int:
        """Elements that stay of each repetition of the pattern when `fraction` goes. Raises
        BudgetError if it is not a whole number, or none."""
        size = _BLOCK[0] * _BLOCK[1] if self.pattern == "library" else _M
        kept = round(size * (1 - fraction))
        if abs(kept - size * (1 - fraction)) > 1e-9 or not 0 < kept < size:
            raise BudgetError(
                f"a {self.pattern} pattern removes multiples of 1/{size} of the weights, got "
                f"patterns={fraction:g}"
            )
        if self.pattern == "2:4" and kept != 2:
            raise BudgetError(f"a 2:4 pattern removes half of the weights, got {fraction:g}")
        return kept

    @door
    def family(self, importance: Tensor, kept: int) -> Family:
        """The pattern family for a linear with `importance` `[N, K]`, keeping `kept` of each
        repetition; a library is selected for it."""
        if self.pattern == "library":
            return Library.select(importance, _BLOCK, kept, _LIBRARY)
        if self.pattern == "2:4":
            return TwoFour(kept)
        return VectorNM(kept, _M, self.vector)

    @property
    def pattern_block(self) -> tuple[int, int]:
        """The part that repeats, as `PatternMask.block` gives it."""
        if self.pattern == "library":
            return _BLOCK
        return (1, 1) if self.pattern == "2:4" else (self.vector, 1)

    @classmethod
    @door
    def of(cls, budget: Budget | Mapping[str, Any] | str) -> Budget:
        """The budget that is meant by one, by `{"heads": 0.5}` or by `"heads=0.5"`."""
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            return cls.parse(budget)
        known = [f.name for f in fields(cls)]
        for name in budget:
            if name not in known:
                raise BudgetError(f"expected a budget in {', '.join(known)}, got {brief(name)}")
        return cls(**budget)

    @classmethod
    @door
    def parse(cls, text: str) -> Budget:
        """Read `heads=0.5,neurons=0.5`."""
        known = {f.name: f for f in fields(cls)}
        values: dict[str, float | int | str] = {}
        for item in text.split(","):
            name, _, value = item.partition("=")
            name, value = name.strip(), value.strip()
            if name in values:
                raise BudgetError(f"expected {name} once in a budget, got {text!r}")
            if name not in known:
                raise BudgetError(
                    f"expected a budget like heads=0.5,neurons=0.5 in {', '.join(known)}, "
                    f"got {item!r}"
                )
            try:
                whole = name in ("seq_len", "vector")
                read = str if name in ("block", "pattern", "latency") else int if whole else float
                values[name] = read(value)
            except ValueError:
                raise BudgetError(f"expected a number for {name}, got {value!r}") from None
        return cls(**values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        times = {name: time for name in self.TIMES if (time := getattr(self, name)) is not None}
        return ", ".join(f"{name}={number:g}" for name, number in {**self.asked(), **times}.items())


def _block_size(block: Any) -> tuple[int, int]:
    """Outputs by inputs, from any form in which a budget takes them."""
    sizes = block.lower().split("x") if isinstance(block, str) else block
    if not isinstance(sizes, (list, tuple)):
        sizes = (sizes,)
    kinds_fit = all(
        isinstance(size, (str, numbers.Integral)) and not isinstance(size, bool) for size in sizes
    )
    if kinds_fit and len(sizes) in (1, 2):
        with suppress(ValueError):
            found = [int(size) for size in sizes]
            if min(found) >= 1:
                return found[0], found[-1]
    raise BudgetError(f"expected a block such as 32 or 128x32, got {brief(block)}")
