"""Several processes that each read a share of the data: sums over all of them, and one word that
counts for all. Without a process group there is one process, and nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def several() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()


def summed(tensor: Tensor) -> Tensor:
    """`tensor`, in place, summed over all processes, each of which must ask for it."""
    if several():
        distributed.all_reduce(tensor)
    return tensor


def total(number: float) -> float:
    """The sum of a number over all processes."""
    return float(summed(torch.tensor(number, dtype=torch.float64))) if several() else number


def averaged(tensor: Tensor) -> Tensor:
    """The mean of `tensor`, in place, over all processes, so that every one decides alike."""
    if several():
        summed(tensor)
        tensor /= distributed.get_world_size()
    return tensor


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` gives in the first process, which alone calls it; what it raises is raised in
    all."""
    if not several():
        return make()
    message: list[object] = [None, None]
    if distributed.get_rank() == 0:
        try:
            message[0] = make()
        except Exception as error:
            message[1] = error
    distributed.broadcast_object_list(message)
    if message[1] is not None:
        raise message[1]  # type: ignore[misc]
    return message[0]  # type: ignore[return-value]
