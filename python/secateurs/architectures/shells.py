"""Shells: the modules of a model once more, around the same tensors."""

from __future__ import annotations

import copy

from torch import nn


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of `model` that shares its parameters and buffers: its modules may be replaced, its
    tensors must not be changed."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
