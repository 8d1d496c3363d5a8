"""WholeLayer: an encoder layer's modules run as one operation for as long as they are what they
were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs import ops


class WholeLayer:
    """One call for the modules of a layer.

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
        modules = list(layer.modules())
        self._children = [(m._modules, name, c) for m in modules for name, c in m.named_children()]
        self._hooks = [
            hooks for m in modules[1:] for hooks in (m._forward_hooks, m._forward_pre_hooks)
        ]
        linears = [
            None if part is None else getattr(part, name)
            for part, names in ((attention, ("qkv", "output")), (ffn, ("up", "down")))
            for name in names
        ]
        self._weights = [
            ({} if m is None else m._buffers, name)
            for m in linears
            for name in ("values", "scale_bits", "indptr", "indices", "bias")
        ]
        norms = (attention_norm, ffn_norm)
        self._weights += [(m._parameters, name) for m in norms for name in ("weight", "bias")]
        self._features = [0 if m is None else m.shape[0] for m in linears]
        self._heads = (0, 0) if attention is None else (attention.heads, attention.kv_heads)
        self._kv_of = {} if attention is None else attention._buffers
        self._rest = ("none" if ffn is None else ffn.up.activation, *(m.eps for m in norms))
        self._parts = (attention, attention_norm, ffn, ffn_norm)

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
        if torch.compiler.is_dynamo_compiling():  # which follows modules better than dictionaries
            return ops.encoder_layer(x, *self._parts, key_mask)
        weights = [held.get(name) for held, name in self._weights]
        kv_of = self._kv_of.get("kv_of")
        return ops.run_encoder_layer(
            x, weights, self._features, *self._heads, kv_of, key_mask, *self._rest
        )
