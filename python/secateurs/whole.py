"""WholeLayer: an encoder layer's modules run as one operation for as long as they are what they
were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs import ops


class WholeLayer:
    """One call for the modules of a layer, the addresses of its weights read once.

    Looking up what a module holds costs a few hundred nanoseconds, and there are two dozen tensors:
    here are the dictionaries they live in.
    """

    def __init__(
        self,
        layer: nn.Module,
        attention: nn.Module | None,
        attention_norm: nn.Module,
        ffn: nn.Module | None,
        ffn_norm: nn.Module,
    ) -> None:
        self._parts: tuple[Any, ...] = (attention, attention_norm, ffn, ffn_norm)
        modules = list(layer.modules())
        self._children = [(m._modules, name, c) for m in modules for name, c in m.named_children()]
        self._hooks = [
            hooks for m in modules[1:] for hooks in (m._forward_hooks, m._forward_pre_hooks)
        ]
        self._tensors = [held for m in modules for held in (m._buffers, m._parameters) if held]
        self._where: list[int] = []
        self._bound: Any = None

    def runs(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether the call is one for the operation: on the CPU, without gradients, under a mask of
        keys alone, none of its modules replaced or watched by a hook."""
        return (
            x.device.type == "cpu"
            and (mask is None or mask.dim() == 2)
            and not torch.is_grad_enabled()
            and not any(self._hooks)
            and all(held[name] is child for held, name, child in self._children)
        )

    def __call__(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """The layer of `x` `[B, T, d]` under `key_mask` `[B, T]`."""
        traced = torch.compiler.is_compiling() or type(x) is not Tensor
        if not traced and ops.forced_backend() in (ops.AUTO, "cpu"):
            where = [t.data_ptr() for held in self._tensors for t in held.values() if t is not None]
            if where != self._where:
                self._bound, self._where = ops.bind_encoder_layer(x, *self._parts), where
            if self._bound is not None:
                return self._bound(x, key_mask)
        return ops.encoder_layer(x, *self._parts, key_mask)
