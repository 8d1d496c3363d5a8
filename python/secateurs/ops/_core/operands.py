"""Operand records: one NamedTuple for each operation, from whose fields torch's schema follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, get_type_hints

from torch import Tensor


class Record(Protocol):
    """The operands of one call, a NamedTuple in the order of the operation's schema."""

    def new_output(self) -> Tensor:
        """Return an uninitialised output, which is all that a fake tensor mode needs."""
        ...


Operands = TypeVar("Operands")

_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor | None]: "Tensor?[]",
    list[int]: "int[]",
    int: "int",
    float: "float",
    float | None: "float?",
    bool: "bool",
    str: "str",
}


def schema(record: Callable[..., Record]) -> str:
    """Return the schema of an operation that takes the fields of a NamedTuple and returns a tensor:
    "(Tensor x, Tensor? bias, float eps) -> Tensor"."""
    fields = get_type_hints(record)
    return f"({', '.join(f'{_TYPES[kind]} {name}' for name, kind in fields.items())}) -> Tensor"
