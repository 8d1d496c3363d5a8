"""The cross-attention sub-layer of a converted layer, and the two caches of its model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateurs.conversion.modules.int8_linear import CodedLinear
from secateurs.conversion.modules.part import Linear
from secateurs.conversion.transformers_attention import attend


class CrossAttention(nn.Module):
    """Attention to what an encoder gives, with one packed projection for keys and values, and the
    residual, if there is one, fused in.

    Keys and values are the same at every step of a generation: where there is a cache, they are
    computed in the first one.
    """

    def __init__(
        self,
        query: Linear,
        kv: Linear,
        output: Linear,
        heads: int,
        head_dim: int,
        scale: float,
        layer_idx: int,
    ) -> None:
        super().__init__()
        self.query, self.kv, self.output = query, kv, output
        self.heads, self.head_dim = heads, head_dim
        self.scale, self.layer_idx = scale, layer_idx

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        encoded: Tensor,  # [B, Tk, d]
        mask: Tensor | None,
        cache: Any,
    ) -> Tensor:
        q = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = self._keys_and_values(encoded, cache)
        short = isinstance(self.query, CodedLinear)
        context = attend(q, k, v, mask, causal=False, scale=self.scale, short_products=short)
        out: Tensor = self.output(context.flatten(2), residual=residual)
        return out

    def _keys_and_values(self, encoded: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """`[B, H, Tk, D]` each."""
        of_cross = getattr(cache, "cross_attention_cache", None)
        if of_cross is not None and cache.is_updated.get(self.layer_idx):
            held = of_cross.layers[self.layer_idx]
            return held.keys, held.values
        joint = self.kv(encoded).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        k, v = joint.split(self.heads, dim=1)
        if of_cross is not None:
            k, v = of_cross.update(k, v, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return k, v


def cache_of_own_states(cache: Any) -> Any:
    """The part of a cache that holds keys and values of the layers' own states: all of it, where
    there is no cross-attention."""
    return getattr(cache, "self_attention_cache", cache)
