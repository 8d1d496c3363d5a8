"""A converted layer, in place of a stock one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateurs.conversion.modules.attention import Attention, Constant, Skip
from secateurs.conversion.modules.cross_attention import CrossAttention, cache_of_own_states
from secateurs.conversion.modules.feed_forward import FeedForward
from secateurs.conversion.modules.int8_linear import Int8Linear
from secateurs.conversion.modules.linears import PackedLinear
from secateurs.conversion.modules.norm import Norm
from secateurs.conversion.modules.part import Part
from secateurs.conversion.modules.prepared_layer import PreparedLayer
from secateurs.conversion.transformers_attention import refuse_unknown
from secateurs.errors import OperandError
from secateurs.ops._backends.cpu import DTYPES


def _in_own_dtypes(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`forward` of a layer without autocast: its weights were packed in the dtypes they have, and
    are not cast anew in each call. Under autocast, and of a layer of several dtypes, the result is
    in the dtype of the input, as a stock layer's."""

    @wraps(forward)
    def run(layer: Layer, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        device = hidden_states.device.type
        # Nothing is cast on the meta device, and torch does not take the question.
        cast = device != "meta" and torch.is_autocast_enabled(device)
        if not (layer.mixed or cast):
            return forward(layer, hidden_states, *args, **options)
        encoded = options.get("encoder_hidden_states")
        if encoded is not None:
            options["encoder_hidden_states"] = encoded.to(layer.dtype)
        rotary = options.get("position_embeddings")
        if rotary is not None:
            options["position_embeddings"] = tuple(turn.to(layer.dtype) for turn in rotary)
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            out = forward(layer, hidden_states.to(layer.dtype), *args, **options)
        return out.to(hidden_states.dtype)

    return run


class Mixed:
    """An object whose class was made at run time, from a stock class: pickled and copied as one
    that the reader makes again."""

    stock: ClassVar[type[nn.Module]]
    maker: ClassVar[Callable[[type[nn.Module]], type]]  # makes the class from `stock`

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        _, (_, *arguments), *state = reduced
        return _made_again, (type(self).maker, self.stock, *arguments), *state


def _made_again(maker: Callable[[type], type], stock: type, *arguments: Any) -> Any:
    return object.__new__(maker(stock), *arguments)


class Layer(Mixed, nn.Module):
    """One Transformer layer: attention, maybe to another stack too, and FFN around their residuals,
    the norm behind or in front of each; or both side by side around one residual, each behind its
    norm or both behind one, which is then that of attention."""

    def __init__(
        self,
        attention: Attention | Constant | Skip,
        ffn: FeedForward | Constant | Skip,
        attention_norm: nn.Module,
        ffn_norm: nn.Module | None,
        norm_first: bool,
        layer_idx: int,
        relative_bias: nn.Module | None = None,
        head_norms: nn.ModuleList | None = None,
        attention_scale: nn.Module | None = None,
        ffn_scale: nn.Module | None = None,
        cross_attention: CrossAttention | Constant | Skip | None = None,
        cross_norm: nn.Module | None = None,
        parallel: bool = False,
    ) -> None:
        # Not super(): `layer_class` mixes this class with a stock layer whose constructor must not
        # run.
        nn.Module.__init__(self)
        self.attention, self.attention_norm = attention, attention_norm
        self.ffn, self.ffn_norm = ffn, ffn_norm
        self.norm_first, self.parallel, self.layer_idx = norm_first, parallel, layer_idx
        self.relative_bias, self.head_norms = relative_bias, head_norms
        self.attention_scale, self.ffn_scale = attention_scale, ffn_scale
        self.cross_attention, self.cross_norm = cross_attention, cross_norm
        self.mixed = len(set(self._dtypes())) > 1
        for part in self.modules():
            if isinstance(part, Part):
                part.casts = self.mixed
        self.whole = self._as_one() if self.why_in_parts() is None else None

    def become(self, other: Layer) -> Layer:
        """Take over the parts of `other` under the hooks of this layer's own parts; return self."""
        mine = dict(self.named_modules())
        for name, module in other.named_modules():
            own = vars(mine.get(name, module))
            vars(module).update({key: held for key, held in own.items() if _is_hooks(key, held)})
        vars(self).update(vars(other))
        if self.whole is not None:
            self.whole = self._as_one()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        if self.whole is not None:
            self.whole.forget()
        nn.Module._apply(self, fn, recurse)
        return self

    def _as_one(self) -> PreparedLayer:
        attention, ffn = (
            None if isinstance(part, Skip) else part for part in (self.attention, self.ffn)
        )
        assert self.ffn_norm is not None  # or its norms would come before the sub-layers
        return PreparedLayer(self, attention, self.attention_norm, ffn, self.ffn_norm)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first weight."""
        return self._dtypes()[0]

    def _dtypes(self) -> list[torch.dtype]:
        held = (*self.buffers(), *self.parameters())
        return [tensor.dtype for tensor in held if tensor.is_floating_point()]

    def why_never_whole(self) -> str | None:
        """Why no form of its linears makes the layer one operation on the CPU; None if one does."""
        attention, ffn = self.attention, self.ffn
        if self.norm_first:
            return "its norms come before the sub-layers"
        if self.cross_attention is not None:
            return "it attends to another stack of layers"
        if self.mixed:
            return "its parts are of several dtypes"
        if self.dtype not in DTYPES:
            return f"no kernel computes it in {self.dtype}"
        if isinstance(attention, Attention) and attention.rules is not None:
            return "no kernel computes a whole layer under attention rules"
        if isinstance(attention, Attention) and attention.softcap is not None:
            return "its attention caps its scores"
        if isinstance(attention, Attention) and attention.biased:
            return "its scores have a bias by position"
        if isinstance(attention, Attention) and attention.causal:
            return "its attention is causal"
        if isinstance(attention, Attention) and attention.scale != attention.head_dim**-0.5:
            return f"its attention scales its scores by {attention.scale:.3g}"
        if self.head_norms is not None:
            return "its attention normalises queries and keys"
        if self.attention_scale is not None or self.ffn_scale is not None:
            return "its sub-layers are scaled, or a norm stands behind them"
        for norm in filter(None, (self.attention_norm, self.ffn_norm)):
            rms = norm.rms if isinstance(norm, Norm) else not isinstance(norm, nn.LayerNorm)
            if rms or not isinstance(norm.weight, Tensor) or norm.weight.dim() != 1:
                return "its norms are not LayerNorms with a weight"
        if isinstance(ffn, FeedForward) and not (ffn.gate is None and ffn.activation is None):
            return "its FFN is gated, or has an activation without a kernel"
        if isinstance(attention, Constant) or isinstance(ffn, Constant):
            return "a sub-layer left its bias behind"
        return None

    def why_in_parts(self) -> str | None:
        """Why the layer does not run as one operation on the CPU; None if it does."""
        never = self.why_never_whole()
        if never is not None:
            return never
        for part, names in ((self.attention, ("qkv", "output")), (self.ffn, ("up", "down"))):
            ours = (PackedLinear, Int8Linear)
            others = [n for n in names if not isinstance(getattr(part, n, None), ours)]
            if others and not isinstance(part, Skip):
                return f"{' and '.join(others)} in another form"
        return None

    def bias_of(self, hidden_states: Tensor, cache: Any = None) -> Tensor:
        """The bias of the scores by relative position that this layer makes, zeros where it makes
        none, `[1, H or 1, T, Tk]`."""
        tokens = hidden_states.shape[1]
        before, keys = 0, tokens
        if cache is not None:
            before = cache.get_seq_length(self.layer_idx)
            keys, _ = cache.get_mask_sizes(tokens, self.layer_idx)
        if self.relative_bias is None:
            return hidden_states.new_zeros(1, 1, tokens, keys)
        bias: Tensor = self.relative_bias(tokens, keys, before)
        return bias

    def _encoded(self, named: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The states of an encoder `[B, Te, d]` and their mask, taken out of the arguments."""
        states = named.pop("encoder_hidden_states", None)
        if states is None:
            raise OperandError(
                f"expected the states of an encoder in a converted {type(self).stock.__name__}, "
                "got none"
            )
        return states, named.pop("encoder_attention_mask", None)

    @_in_own_dtypes
    def forward(
        self,
        hidden_states: Tensor,  # [B, T, d]
        attention_mask: Tensor | None = None,
        *positional: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        past_key_values: Any = None,  # the name of `cache` before transformers 5.24
        is_causal: bool | None = None,
        scores_bias: Tensor | None = None,  # [1, H, T, Tk], of all heads of the dense layer
        **named: Any,
    ) -> Tensor:
        encoded = () if self.cross_attention is None else self._encoded(named)
        if positional or named:
            refuse_unknown(type(self).stock, positional, named)
        both = past_key_values if cache is None else cache
        cache = cache_of_own_states(both)
        if cache is not None and not isinstance(self.attention, Attention):
            # The cache counts the tokens it has seen by the states it holds: a layer without heads
            # still counts.
            seen = hidden_states.new_zeros(*hidden_states.shape[:2], 1, 1).transpose(1, 2)
            cache.update(seen, seen, self.layer_idx)
        if self.whole is not None and cache is None and not is_causal:
            whole = self.whole(hidden_states, attention_mask)
            if whole is not None:
                return whole
        x = hidden_states
        context = (
            attention_mask,
            position_embeddings,
            cache,
            is_causal,
            scores_bias,
            self.head_norms,
        )
        if self.parallel:
            normed = self.attention_norm(x)
            behind = _added(self.attention, normed, x, self.attention_scale, *context)
            normed = normed if self.ffn_norm is None else self.ffn_norm(x)
            return _added(self.ffn, normed, behind, self.ffn_scale)
        assert self.ffn_norm is not None
        if self.norm_first:
            x = _added(self.attention, self.attention_norm(x), x, self.attention_scale, *context)
            if self.cross_attention is not None and self.cross_norm is not None:
                x = self.cross_attention(self.cross_norm(x), x, *encoded, both)
            return _added(self.ffn, self.ffn_norm(x), x, self.ffn_scale)
        x = self.attention_norm(_added(self.attention, x, x, self.attention_scale, *context))
        if self.cross_attention is not None and self.cross_norm is not None:
            x = self.cross_norm(self.cross_attention(x, x, *encoded, both))
        y: Tensor = self.ffn_norm(_added(self.ffn, x, x, self.ffn_scale))
        return y


def _added(
    part: nn.Module, x: Tensor, residual: Tensor, scale: nn.Module | None, *context: Any
) -> Tensor:
    """`residual` and what a sub-layer makes of `x`, times its scale or behind its norm."""
    if scale is None or isinstance(part, Skip):
        y: Tensor = part(x, residual, *context)
        return y
    y = residual + scale(part(x, None, *context))
    return y


def again(module: nn.Module, tensor: Callable[[str, Tensor], Tensor], path: str = "") -> nn.Module:
    """A copy of `module` and those within it, without hooks, that holds `tensor(name, held)` in
    place of each tensor it holds."""
    other: nn.Module = object.__new__(type(module))
    for key, value in vars(module).items():
        # Hooks watch the module they were put on, and what they are need not be copied or pickled.
        vars(other)[key] = type(value)() if _is_hooks(key, value) else value
    for kind in ("_parameters", "_buffers"):
        vars(other)[kind] = {
            name: None if held is None else tensor(f"{path}{name}", held)
            for name, held in vars(module)[kind].items()
        }
    vars(other)["_modules"] = {
        name: None if child is None else again(child, tensor, f"{path}{name}.")
        for name, child in module._modules.items()
    }
    return other


def _is_hooks(key: str, value: Any) -> bool:
    return "hooks" in key and isinstance(value, dict)


def husk(layer: nn.Module) -> nn.Module:
    """Return a stock layer without its data, to compare a converted layer with and to rebuild it
    from."""

    def without_data(_: str, held: Tensor) -> Tensor:
        shape = torch.empty_like(held.detach(), device="meta")
        return nn.Parameter(shape, False) if isinstance(held, nn.Parameter) else shape

    return again(layer, without_data)
