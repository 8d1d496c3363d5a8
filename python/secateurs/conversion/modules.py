"""What a converted model is made of: layers with packed weights, fused epilogues and attention over
uneven heads.

All of it is for inference: dropout is left out, weights are buffers. Gradients still flow to
inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs import ops
from secateurs.conversion.parts import Part
from secateurs.conversion.transformers_attention import attend, refuse_unknown
from secateurs.conversion.whole_layer import WholeLayer
from secateurs.errors import FormatError
from secateurs.formats import BlockSparseWeight
from secateurs.ops._backends.cpu import DTYPES


class DenseLinear(Part):
    """y = act(x W^T + bias) * multiplier + residual by torch's own product, where none of our
    kernels applies."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias.to(weight.dtype))
        self.activation = activation

    def forward(
        self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        if self.casts:
            x, multiplier, residual = self.own(x, multiplier, residual)
        y = ops.ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        y = y if multiplier is None else y * multiplier
        return y if residual is None else y + residual

    def dense(self) -> Tensor:
        """The weight `[N, K]`."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, dense, activation={self.activation}"


class PackedLinear(Part):
    """y = act(x W^T + bias) * multiplier + residual by our kernel; W is packed once, dense or
    block-sparse."""

    def __init__(
        self, weight: BlockSparseWeight, bias: Tensor | None, activation: str = "none"
    ) -> None:
        super().__init__()
        weight.validate()
        self.values = nn.Buffer(weight.values)
        self.indptr = nn.Buffer(weight.indptr)
        self.indices = nn.Buffer(weight.indices)
        self.bias = None if bias is None else nn.Buffer(bias.to(weight.values.dtype))
        self.shape, self.activation = weight.shape, activation

    def forward(
        self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        if self.casts:
            x, multiplier, residual = self.own(x, multiplier, residual)
        return ops.block_sparse_linear(x, self, self.bias, self.activation, multiplier, residual)

    @property
    def weight(self) -> BlockSparseWeight:
        return BlockSparseWeight(self.values, self.indptr, self.indices, self.shape)

    def dense(self) -> Tensor:
        """The weight `[N, K]`, zeros where no block is stored."""
        return self.weight.to_dense()

    def choice(self) -> ops.Choice:
        """Which backend would run this where it is, and why not the others."""
        x = self.values.new_empty(1, self.shape[1])
        return ops.explain_choice(ops.block_sparse_linear, x, self, self.bias, self.activation)

    def refusal(self) -> str | None:
        """Why none of our kernels would run this where it is, if so."""
        return self.choice().why_no_kernel()

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"{self.shape}, block={weight.block}, density={weight.density:.2f}, "
            f"activation={self.activation}"
        )


class Constant(nn.Module):
    """A sub-layer that lost all its heads or neurons: the bias of its last projection is what is
    left."""

    def __init__(self, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor, residual: Tensor, *_: Any) -> Tensor:
        return residual if self.bias is None else residual + self.bias


class Skip(nn.Module):
    """A removed sub-layer: only the residual is left."""

    def forward(self, x: Tensor, residual: Tensor, *_: Any) -> Tensor:
        return residual


class Attention(nn.Module):
    """Self-attention with one packed projection for q, k and v, any number of heads, and the
    residual fused in."""

    def __init__(
        self,
        qkv: nn.Module,
        output: nn.Module,
        heads: int,
        kv_heads: int,
        head_dim: int,
        kv_of: Tensor | None,
        causal: bool,
        scale: float,
        layer_idx: int,
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

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        mask: Tensor | None,
        rotary: Any,
        cache: Any,
        is_causal: bool | None = None,
    ) -> Tensor:
        joint = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, T, Hq + 2 Hkv, D]
        q, k, v = joint.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        causal = self.causal if is_causal is None else is_causal
        context = attend(q, k, v, mask, causal=causal, scale=self.scale, kv_of=self.kv_of)
        return self.output(context.flatten(2), residual=residual)


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where there is a gate; the residual is fused
    in.

    `activation` is a module only where the kernels' epilogue has no such function.
    """

    def __init__(
        self, up: nn.Module, down: nn.Module, gate: nn.Module | None, activation: nn.Module | None
    ) -> None:
        super().__init__()
        self.up, self.down, self.gate, self.activation = up, down, gate, activation

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        if self.activation is None:
            h = self.up(x) if self.gate is None else self.gate(x, multiplier=self.up(x))
        elif self.gate is None:
            h = self.activation(self.up(x))
        else:
            h = self.activation(self.gate(x)) * self.up(x)
        return self.down(h, residual=residual)


class Norm(Part):
    """A LayerNorm or RMSNorm by our kernel, with the parameters of the stock one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps, self.rms = eps, rms

    def forward(self, x: Tensor) -> Tensor:
        if self.casts:
            (x,) = self.own(x)
        return ops.add_norm(x, None, self.weight, self.bias, self.eps, self.rms)

    @staticmethod
    def of(stock: nn.Module, rms: bool) -> nn.Module:
        """`stock` by our kernel where that is faster, else itself: a norm that is neither a
        LayerNorm nor, as `rms` says of the family, an RMSNorm; a device without a kernel; and
        LayerNorm in float32, where torch's own is as fast."""
        if isinstance(stock, nn.LayerNorm):
            rms, eps, weight, bias = False, stock.eps, stock.weight, stock.bias
        else:
            eps = getattr(stock, "variance_epsilon", getattr(stock, "eps", None))
            weight, bias = getattr(stock, "weight", None), None
            if not rms or eps is None:
                return stock
        if weight is None or weight.dim() != 1 or (not rms and weight.dtype == torch.float32):
            return stock
        call = (weight.detach()[None], None, weight, bias, eps, rms)
        faster = ops.explain_choice(ops.add_norm, *call).backend not in (None, "reference")
        return Norm(weight, bias, eps, rms) if faster else stock

    def extra_repr(self) -> str:
        kind = "RMSNorm" if self.rms else "LayerNorm"
        return f"{kind}, {tuple(self.weight.shape)}, eps={self.eps}"


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
        _, (_, *arguments), *state = super().__reduce_ex__(max(2, protocol))
        return _made_again, (type(self).maker, self.stock, *arguments), *state


def _made_again(maker: Callable[[type], type], stock: type, *arguments: Any) -> Any:
    return object.__new__(maker(stock), *arguments)


class Layer(Mixed, nn.Module):
    """One Transformer layer: attention and FFN around their residuals, the norm behind or in front
    of each."""

    def __init__(
        self,
        attention: nn.Module,
        ffn: nn.Module,
        attention_norm: nn.Module,
        ffn_norm: nn.Module,
        norm_first: bool,
        layer_idx: int,
    ) -> None:
        # Not super(): `layer_class` mixes this class with a stock layer whose constructor must not
        # run.
        nn.Module.__init__(self)
        self.attention, self.attention_norm = attention, attention_norm
        self.ffn, self.ffn_norm = ffn, ffn_norm
        self.norm_first, self.layer_idx = norm_first, layer_idx
        self.mixed = len(set(self._dtypes())) > 1
        for part in self.modules():
            if isinstance(part, Part):
                part.casts = self.mixed
        self.whole = self._as_one() if self.why_in_parts() is None else None

    def become(self, other: Layer) -> Layer:
        """This layer, made of the parts of `other`, under the hooks of its own parts where it has
        such parts."""
        mine = dict(self.named_modules())
        for name, module in other.named_modules():
            own = vars(mine.get(name, module))
            vars(module).update({key: held for key, held in own.items() if _is_hooks(key, held)})
        vars(self).update(vars(other))
        if self.whole is not None:
            self.whole = self._as_one()
        return self

    def _as_one(self) -> WholeLayer:
        parts = (None if isinstance(part, Skip) else part for part in self.children())
        return WholeLayer(self, *parts)

    @property
    def dtype(self) -> torch.dtype:
        """Of its first weight."""
        return self._dtypes()[0]

    def _dtypes(self) -> list[torch.dtype]:
        held = (*self.buffers(), *self.parameters())
        return [tensor.dtype for tensor in held if tensor.is_floating_point()]

    def why_never_whole(self) -> str | None:
        """Why the layer is not one operation on the CPU whatever form its linears take, if so."""
        attention, ffn = self.attention, self.ffn
        if self.norm_first:
            return "its norms come before the sub-layers"
        if self.mixed:
            return "its parts are of several dtypes"
        if self.dtype not in DTYPES:
            return f"no kernel computes it in {self.dtype}"
        if isinstance(attention, Attention) and attention.causal:
            return "its attention is causal"
        if isinstance(attention, Attention) and attention.scale != attention.head_dim**-0.5:
            return f"its attention scales its scores by {attention.scale:.3g}"
        for norm in (self.attention_norm, self.ffn_norm):
            rms = norm.rms if isinstance(norm, Norm) else not isinstance(norm, nn.LayerNorm)
            if rms or norm.weight is None or norm.weight.dim() != 1:
                return "its norms are not LayerNorms with a weight"
        if isinstance(ffn, FeedForward) and not (ffn.gate is None and ffn.activation is None):
            return "its FFN is gated, or has an activation without a kernel"
        if isinstance(attention, Constant) or isinstance(ffn, Constant):
            return "a sub-layer left its bias behind"
        return None

    def why_in_parts(self) -> str | None:
        """Why the layer is not one operation on the CPU, if so."""
        never = self.why_never_whole()
        if never is not None:
            return never
        for part, names in ((self.attention, ("qkv", "output")), (self.ffn, ("up", "down"))):
            others = [n for n in names if not isinstance(getattr(part, n, None), PackedLinear)]
            if others and not isinstance(part, Skip):
                return f"{' and '.join(others)} in another form"
        return None

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
        **named: Any,
    ) -> Tensor:
        if positional or named:
            refuse_unknown(type(self).stock, positional, named)
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(self.attention, Attention):
            # The cache counts the tokens it has seen by the states it holds: a layer without heads
            # still counts.
            seen = hidden_states.new_zeros(*hidden_states.shape[:2], 1, 1).transpose(1, 2)
            cache.update(seen, seen, self.layer_idx)
        alone = cache is None and not is_causal
        if alone and self.whole is not None and self.whole.runs(hidden_states, attention_mask):
            return self.whole(hidden_states, attention_mask)
        x = hidden_states
        context = (attention_mask, position_embeddings, cache, is_causal)
        if self.norm_first:
            x = self.attention(self.attention_norm(x), x, *context)
            return self.ffn(self.ffn_norm(x), x)
        x = self.attention_norm(self.attention(x, x, *context))
        return self.ffn_norm(self.ffn(x, x))


@cache
def layer_class(stock: type[nn.Module]) -> type[Layer]:
    """`Layer` as a subclass of the stock layer: transformers finds the layers whose hidden states
    it returns by class."""
    about = {"__module__": stock.__module__, "stock": stock, "maker": layer_class}
    return type(f"Converted{stock.__name__}", (Layer, stock), about)


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
    """A stock layer without its data: what a converted one is compared with, and made again
    from."""

    def without_data(_: str, held: Tensor) -> Tensor:
        shape = torch.empty_like(held.detach(), device="meta")
        return nn.Parameter(shape, False) if isinstance(held, nn.Parameter) else shape

    return again(layer, without_data)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `x` `[B, T, H, D]` by `cos`, `sin` `[B, T, D]` (halves rotated
    as pairs)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
