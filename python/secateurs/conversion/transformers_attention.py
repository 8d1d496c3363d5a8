"""How transformers calls our layers and our attention: the arguments that they understand, a
registered attention function and the mask it wants.

transformers looks up both by the name in `config._attn_implementation`. Without a mask function of
the same name the mask would silently be None, and causality lost.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from secateurs import ops
from secateurs.errors import BackendError, OperandError
from secateurs.plan.attention_rules import Rule, allowed, layout

NAME = "secateurs"
# Queries by keys that rules leave or hide together: small ones hide more, and a GPU's tile is no
# larger than one.
CPU_BLOCK, GPU_BLOCK = 32, 64

# What transformers hands through to every layer though it changes nothing there: positions are in
# the rotary embedding, the cache itself says whether it is used, the rest is for the model around
# the layers. An argument in neither this set nor a signature of ours is refused, never dropped.
FOR_OTHERS = frozenset(
    (
        "cache_position",
        "num_items_in_batch",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "token_type_ids",
        "use_cache",
    )
)
# What an attention function gets besides: the window of a layer is in its mask already.
FOR_OTHERS_IN_ATTENTION = FOR_OTHERS | {"sliding_window"}


def refuse_unknown(
    stock: type[nn.Module], positional: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """Raise OperandError for arguments of a layer that are set and not understood.

    Args:
        stock: class of the layer, whose signature names positional arguments.
        positional: those behind the states and the mask.
    """
    for index, value in enumerate(positional):
        if value is not None and value is not False:
            names = list(inspect.signature(stock.forward).parameters)[3:]
            name = names[index] if index < len(names) else f"argument {index + 3}"
            _refuse_set(stock.__name__, {name: value}, FOR_OTHERS)
    _refuse_set(stock.__name__, named, FOR_OTHERS)


def _refuse_set(who: str, named: Mapping[str, Any], for_others: Collection[str]) -> None:
    for name, value in named.items():
        if value is not None and value is not False and name not in for_others:
            raise OperandError(
                f"expected only arguments that a converted {who} understands, got {name}="
                f"{_brief(value)}: run the dense model where it is needed"
            )


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, (bool, int, float, str)) else type(value).__name__


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask our attention needs: nothing, key padding `[B, Tk]` (True: may be attended), or,
    where neither says it all, the explicit `[B, 1, Tq, Tk]`. The first two leave causality to the
    layer, the last one includes it."""
    plain = isinstance(q_offset, int) and isinstance(kv_offset, int) and kv_offset == 0
    plain = plain and kwargs.get("local_size") is None
    bidirectional = mask_function is bidirectional_mask_function
    aligned = mask_function is causal_mask_function and plain and q_offset + q_length == kv_length
    padding = attention_mask is None or attention_mask.shape[-1] == kv_length
    if padding and (aligned or (bidirectional and plain)):
        return _key_padding(attention_mask)
    # Offsets may be tensors, whatever the types of `sdpa_mask` say.
    offsets: dict[str, Any] = {"q_offset": q_offset, "kv_offset": kv_offset}
    explicit = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        **{**kwargs, **offsets, **explicit},
    )


def _key_padding(mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    mask = mask.to(torch.bool)
    # Only where reading the answer costs nothing, and nobody writes it down: another batch may be
    # padded.
    readable = mask.device.type == "cpu" and ops.plain(mask) and not ops.recording()
    return None if readable and bool(mask.all()) else mask


def attend(
    q: Tensor,  # [B, Hq, Tq, D]
    k: Tensor,  # [B, Hkv, Tk, D]
    v: Tensor,
    mask: Tensor | None,  # as `attention_mask` returns it
    *,
    causal: bool,
    scale: float | None = None,
    kv_of: Tensor | None = None,
    rules: Sequence[Rule] | None = None,
    short_products: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """Attention `[B, Tq, Hq, D]` under a mask of either form, and `rules` of each head, by which
    the last query is at the last key; `short_products` and `softcap` as of `ops.attention`."""
    key_mask, explicit = (mask, None) if mask is None or mask.dim() == 2 else (None, mask)
    causal = causal and explicit is None
    pattern, (tq, tk) = None, (q.shape[2], k.shape[2])
    if rules is not None and explicit is not None and explicit.is_floating_point():
        # Where rules leave a query only keys that the lowest value hides, it sees none.
        hidden = explicit <= torch.finfo(explicit.dtype).min / 2
        explicit = explicit.masked_fill(hidden, -torch.inf)
    if rules is not None and ops.recording():
        # Blocks of one pair of lengths would be written down for all that follow.
        hidden = ~allowed(rules, tq, tk, q.device)[None]
        if explicit is None or explicit.dtype == torch.bool:
            explicit = ~hidden if explicit is None else explicit & ~hidden
        else:
            explicit = explicit.masked_fill(hidden, -torch.inf)
    elif rules is not None:
        block = CPU_BLOCK if q.device.type == "cpu" else GPU_BLOCK
        pattern = layout(rules, tq, tk, block=block, causal=causal, device=q.device)
    return ops.attention(
        q,
        k,
        v,
        kv_of=kv_of,
        key_mask=key_mask,
        mask=explicit,
        causal=causal,
        scale=scale,
        pattern=pattern,
        short_products=short_products,
        softcap=softcap,
    )


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Our attention under transformers' calling convention: `attn_implementation="secateurs"` on
    any model."""
    _refuse_set(type(module).__name__, kwargs, FOR_OTHERS_IN_ATTENTION)
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", False)
    if dropout:
        raise BackendError(
            f"expected attention without dropout (model.eval(), or probability 0), got {dropout}: "
            "the fused kernel never holds the probabilities that dropout acts on"
        )
    out = attend(query, key, value, attention_mask, causal=causal, scale=scaling, softcap=softcap)
    return out, None


def register() -> None:
    """Make `attn_implementation="secateurs"` known to transformers."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)
