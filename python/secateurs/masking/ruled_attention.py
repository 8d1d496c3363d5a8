"""Attention rules on a live model: hooks that restrict what each head sees.

One in front of the attention combines the mask that the model hands it with the rules. A query that
may see nothing would be a row of infinities to a softmax: it sees everything instead, and a hook in
front of the output projection makes its context zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateurs.architectures.calls import Arguments, states_of
from secateurs.architectures.sites import Sites
from secateurs.errors import FamilyError, OperandError
from secateurs.plan import SparsityPlan
from secateurs.plan.attention_rules import Rule, allowed

ADDED, OBEYED = "eager", "sdpa"  # what these attentions of transformers do with a mask


def ruled_layers(sites: Sites, plan: SparsityPlan) -> list[int]:
    """The layers whose attention stays and is restricted by rules of `plan`."""
    return [i for i in range(len(sites.layers)) if sites.keep(plan, i).kept_rules is not None]


def check_rules(model: nn.Module, sites: Sites, plan: SparsityPlan) -> None:
    """Raise FamilyError if `plan` has rules that the attention of `model` could not follow."""
    if not ruled_layers(sites, plan):
        return
    if not getattr(model, "_supports_sdpa", False):
        raise FamilyError(
            f"expected a model whose layers each take a mask, but {type(model).__name__} of this "
            "transformers adds it to the scores in the first layer alone: attention rules need a "
            "newer one"
        )
    _check_implementation(cast(Any, model).config)


def _check_implementation(config: Any) -> str:
    used: str = config._attn_implementation
    if used not in (ADDED, OBEYED):
        raise FamilyError(
            f"expected the attention {ADDED!r} or {OBEYED!r} under attention rules, got {used!r}: "
            f"call model.set_attn_implementation({OBEYED!r}) first"
        )
    return used


class RuledAttention:
    """The rules of one layer, by its two hooks. `rules` has one for each head of the dense
    layer."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._blind: dict[int, Tensor] = {}  # bool [B or 1, H, T], by thread

    def install(self, model: nn.Module, sites: Sites, index: int) -> Callable[[], None]:
        """Restrict layer `index` of `model` until the function returned is called."""
        attention = sites.layers[index].architecture.attention
        hooks = (
            sites.layer(model, index)
            .get_submodule(attention.holder)
            .register_forward_pre_hook(self.restrict, with_kwargs=True),
            sites.linear(model, index, attention.last.role).module.register_forward_pre_hook(
                self.silence
            ),
        )

        def leave() -> None:
            for hook in hooks:
                hook.remove()

        return leave

    def restrict(
        self, attention: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> Arguments:
        """The arguments of the attention, the mask one `[B or 1, H, T, Tk]`."""
        names = list(inspect.signature(attention.forward).parameters)
        given = {**dict(zip(names, args, strict=False)), **named}
        name = "mask" if "mask" in names else "attention_mask"
        states, mask = states_of(args, named), given.get(name)
        tokens, keys = states.shape[1], states.shape[1] + _before(attention, given)
        implementation = _check_implementation(attention.config)
        if mask is None:
            seen = states.new_ones(1, 1, tokens, keys, dtype=torch.bool)
            causal = given.get("is_causal")
            causal = getattr(attention, "is_causal", False) if causal is None else causal
            if causal and implementation == OBEYED:
                seen = seen.tril(keys - tokens)
        elif mask.dim() == 4:
            check_all_keys(mask.shape[-1], keys)
            least = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            seen = mask if least is None else mask > least / 2
        else:
            raise OperandError(
                f"expected a mask [B, 1, {tokens}, {keys}] under attention rules, got one of shape "
                f"{tuple(mask.shape)}"
            )
        seen = seen & allowed(self.rules, tokens, keys, states.device)
        blind = ~seen.any(-1)
        self._blind[get_ident()] = blind
        ruled = seen | blind[..., None]
        if implementation == ADDED or (mask is not None and mask.is_floating_point()):
            added = mask if mask is not None and mask.is_floating_point() else states.new_zeros(())
            ruled = torch.where(seen, added, torch.finfo(added.dtype).min)
            ruled = ruled.masked_fill(blind[..., None], 0)
        if len(args) > names.index(name):
            at = names.index(name)
            return (*args[:at], ruled, *args[at + 1 :]), named
        return args, {**named, name: ruled}

    def silence(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The context `[B, T, H * D]`, zeros where a query saw nothing."""
        blind = self._blind.pop(get_ident(), None)
        if blind is None:
            return args
        context: Tensor = args[0]
        heads = context.unflatten(-1, (len(self.rules), -1))
        return heads.masked_fill(blind.transpose(1, 2)[..., None], 0).flatten(-2), *args[1:]


def _before(attention: nn.Module, given: Mapping[str, Any]) -> int:
    named = (given.get(name) for name in ("cache", "past_key_values", "layer_past"))
    cache = next((each for each in named if each is not None), None)
    return 0 if cache is None else tokens_before(cache, cast(int, attention.layer_idx))


def tokens_before(cache: Any, index: int) -> int:
    """How many tokens layer `index` has seen before a call with `cache`. Raises OperandError for a
    cache whose keys stand elsewhere than one behind the other."""
    from transformers import DynamicCache  # only now: pruning loads this module, and not that one

    if not isinstance(cache, DynamicCache):
        raise OperandError(
            "expected a cache that grows with its keys (DynamicCache) under attention rules, got a "
            f"{type(cache).__name__}"
        )
    return int(cache.get_seq_length(index))


def check_all_keys(keys: int, expected: int) -> None:
    """Raise OperandError unless a call has the keys of all tokens so far: rules count from the
    first."""
    if keys != expected:
        raise OperandError(
            f"expected the keys of all {expected} tokens under attention rules, got {keys}: a "
            "sliding window forgets where the first one was"
        )
