"""Shells: the modules of a model once more, around the same tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters and buffers: its modules may be replaced, its
    tensors must not be changed."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


@contextmanager
def own_module(shell: nn.Module, path: str) -> Iterator[None]:
    """Let the module at `path` of a shell have tensors of its own inside the block."""
    shared = shell.get_submodule(path)
    shell.set_submodule(path, copy.deepcopy(shared))
    try:
        yield
    finally:
        shell.set_submodule(path, shared)
