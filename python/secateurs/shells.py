"""Shells: the modules of a model once more, around the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters and buffers: its modules may be replaced, its
    tensors must not be changed."""
    return copy_sharing(model, [*model.parameters(), *model.buffers()])


def copy_sharing(model: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    """A copy of `model` that has the tensors `shared` in common with it, and no others."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def cast_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `model` in `dtype`, each tensor cast as it is copied: at no time is there a second
    model in the old dtype."""
    cast: dict[int, Tensor] = {}
    for held in (*model.parameters(), *model.buffers()):
        if held.is_floating_point() and held.dtype != dtype:
            made = held.detach().to(dtype)
            parameter = isinstance(held, nn.Parameter)
            cast[id(held)] = nn.Parameter(made, held.requires_grad) if parameter else made
    return copy.deepcopy(model, cast).to(dtype)


@contextmanager
def own_module(shell: nn.Module, path: str) -> Iterator[None]:
    """Let the module at `path` of a shell have tensors of its own inside the block."""
    shared = shell.get_submodule(path)
    shell.set_submodule(path, copy.deepcopy(shared))
    try:
        yield
    finally:
        shell.set_submodule(path, shared)
