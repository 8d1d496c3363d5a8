"""The attention sub-layer of a converted layer, and what is left of a sub-layer without units."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.conversion.modules.int8_linear import CodedLinear
from secateurs.conversion.modules.part import Linear
from secateurs.conversion.transformers_attention import attend
from secateurs.errors import FormatError
from secateurs.masking.ruled_attention import check_all_keys, tokens_before
from secateurs.plan.attention_rules import Rule


class Constant(nn.Module):
    """A sub-layer that lost all its heads or neurons: the bias of its last projection is what is
    left."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor, residual: Tensor | None, *_: Any) -> Tensor:
        left = x.new_zeros(x.shape[-1:]) if self.bias is None else self.bias
        return left if residual is None else residual + left


class Skip(nn.Module):
    """A removed sub-layer: only the residual is left."""

    def forward(self, x: Tensor, residual: Tensor, *_: Any) -> Tensor:
        return residual


class Attention(nn.Module):
    """Self-attention with one packed projection for q, k and v, any number of heads, and the
    residual, if there is one, fused in.

    Args:
        kv_of: int32 `[heads]`, the key/value head of each head; None: equal groups of neighbours.
        kept_heads: int64 `[heads]`, which heads of the dense layer these are, where a bias of the
            scores for each of those comes from outside; None: all of them.
        rules: which keys each head sees; None: all.
        rotary: whether queries and keys are turned where the model has a rotary embedding.
        biased: whether a bias of the scores comes from outside.
        softcap: as of `ops.attention`.
    """

    def __init__(
        self,
        qkv: Linear,
        output: Linear,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_of: Tensor | None,
        causal: bool,
        scale: float,
        layer_idx: int,
        kept_heads: Tensor | None = None,
        rules: tuple[Rule, ...] | None = None,
        rotary: bool = True,
        biased: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        if kv_of is not None and not (0 <= int(kv_of.min()) <= int(kv_of.max()) < kv_heads):
            raise FormatError(
                f"kv_of must name key/value heads in 0..{kv_heads - 1}, got {kv_of.tolist()}"
            )
        self.qkv, self.output = qkv, output
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.kv_of = None if kv_of is None else nn.Buffer(kv_of)
        self.causal, self.scale, self.layer_idx = causal, scale, layer_idx
        self.kept_heads = None if kept_heads is None else nn.Buffer(kept_heads)
        self.rules, self.rotary, self.biased = rules, rotary, biased
        self.softcap = softcap

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        mask: Tensor | None,
        rotary: Any,
        cache: Any,
        is_causal: bool | None = None,
        scores_bias: Tensor | None = None,
        head_norms: nn.ModuleList | None = None,  # of queries and keys
    ) -> Tensor:
        joint = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, T, Hq + 2 Hkv, D]
        q, k, v = joint.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if head_norms is not None:
            q, k = (norm(x) for norm, x in zip(head_norms, (q, k), strict=True))
        if rotary is not None and self.rotary:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            tokens = x.shape[1]
            if self.rules is not None:
                tokens += tokens_before(cache, self.layer_idx)
            k, v = cache.update(k, v, self.layer_idx)
            if self.rules is not None:
                check_all_keys(k.shape[2], tokens)
        causal = self.causal if is_causal is None else is_causal
        if scores_bias is not None:
            if causal and (mask is None or mask.dim() == 2):  # else the mask says it
                later = ~torch.ones_like(scores_bias[0, 0], dtype=torch.bool).tril(
                    k.shape[2] - q.shape[2]
                )
                scores_bias = scores_bias.masked_fill(later, -math.inf)
            if self.kept_heads is not None and scores_bias.shape[1] > 1:  # else one for all heads
                scores_bias = scores_bias[:, self.kept_heads]
            mask = biased(scores_bias.to(q.dtype), mask)
        context = attend(
            q,
            k,
            v,
            mask,
            causal=causal,
            scale=self.scale,
            kv_of=self.kv_of,
            rules=self.rules,
            short_products=isinstance(self.qkv, CodedLinear),  # which rounds more
            softcap=self.softcap,
        )
        out: Tensor = self.output(context.flatten(2), residual=residual)
        return out


class RelativeBias(nn.Module):
    """The bias of attention scores by relative position (Raffel et al. 2020, section 2.1): near
    positions have a bucket each, far ones share theirs in steps that grow by a constant factor.

    Args:
        embedding: `[buckets, H]`, one row for each bucket; the upper half is for later positions.
        max_distance: from which on all positions share the last bucket.
        causal: no position sees a later one, and all buckets are for earlier ones.
    """

    def __init__(self, embedding: nn.Embedding, max_distance: int, causal: bool) -> None:
        super().__init__()
        self.embedding, self.max_distance, self.causal = embedding, max_distance, causal

    def forward(self, queries: int, keys: int, before: int | Tensor = 0) -> Tensor:
        """`[1, H, queries, keys]`: from queries, the first of them behind `before` keys, to
        keys."""
        device = self.embedding.weight.device
        places = torch.arange(queries, device=device) + before
        distance = torch.arange(keys, device=device)[None, :] - places[:, None]
        bias: Tensor = self.embedding(self._bucket(distance))
        return bias.permute(2, 0, 1)[None]

    def _bucket(self, distance: Tensor) -> Tensor:
        one_side = self.embedding.num_embeddings // (1 if self.causal else 2)
        exact = one_side // 2
        far = (-distance).clamp_min(0) if self.causal else distance.abs()
        growth = torch.log(far.float() / exact) / math.log(self.max_distance / exact)
        shared = (exact + (growth * (one_side - exact)).long()).clamp(max=one_side - 1)
        bucket = torch.where(far < exact, far, shared)
        return bucket if self.causal else bucket + one_side * (distance > 0)


class Scale(nn.Module):
    """A factor of the output of a sub-layer, or one of each channel `[d]`."""

    def __init__(self, factor: float | Tensor) -> None:
        super().__init__()
        self.factor = nn.Buffer(factor.detach()) if isinstance(factor, Tensor) else factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A float mask `[B, H, Tq, Tk]` of a bias of scores and a mask: bool, `[B, Tk]` of keys or
    broadcastable to the scores, or float, which is added to them."""
    if mask is None:
        return bias
    if mask.is_floating_point():
        return bias + mask
    if mask.dim() == 2:
        mask = mask[:, None, None]
    return bias.masked_fill(~mask, -math.inf)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `x` `[B, T, H, D]` by `cos`, `sin` `[B, T, R]` (halves rotated
    as pairs): of the first R channels of each head; the others stay as they are."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)
    half = width // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
