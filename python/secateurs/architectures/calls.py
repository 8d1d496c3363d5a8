"""How models call their layers: where the states are among the arguments and in the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def states_of(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The states `[B, T, d]` that a layer is given: its first argument, or `hidden_states`."""
    states: Tensor = args[0] if args else named["hidden_states"]
    return states


def with_states(
    args: tuple[Any, ...], named: Mapping[str, Any], states: Tensor | None
) -> Arguments:
    """The same arguments with other states."""
    if args:
        return (states, *args[1:]), dict(named)
    return args, {**named, "hidden_states": states}


def states_behind(output: Any) -> Tensor:
    """The states that a layer returns, alone or before something else."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def with_states_behind(output: Any, states: Tensor) -> Any:
    """The same with other states."""
    return (states, *output[1:]) if isinstance(output, tuple) else states
