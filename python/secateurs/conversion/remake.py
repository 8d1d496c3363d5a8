"""remake: a converted model made again from its own compact weights, for where it is now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.schema import Architecture
from secateurs.architectures.sites import Sites
from secateurs.conversion.cost import FormPicker
from secateurs.conversion.modules import (
    Attention,
    Constant,
    CrossAttention,
    FeedForward,
    Layer,
    RelativeBias,
    Scale,
    again,
)
from secateurs.conversion.modules.part import Linear
from secateurs.conversion.rebuilding import rebuild
from secateurs.conversion.report import conversion_of
from secateurs.conversion.slicing import CompactLinear, compact_blocks

# Weight, bias and scales of a linear.
Held = tuple[Tensor, Tensor | None, Tensor | None]


@torch.no_grad()
def remake(model: nn.Module) -> nn.Module:
    """Choose the form of each part of a converted model again, in place, for the dtype and device
    its weights have now. Layers stay the same objects and keep their hooks."""
    conversion = conversion_of(model)
    sites, plan = conversion.sites, conversion.plan
    numbers = range(len(sites.layers))
    layers = [converted_layer(model, sites, i) for i in numbers]
    templates = [
        stock_husk(layers[i], conversion.husks[i], sites.layers[i].architecture, True)
        for i in numbers
    ]
    picker = FormPicker(
        tokens=conversion.tokens, precision=conversion.precision, stays=conversion.stays
    )

    def linears(index: int) -> dict[str, CompactLinear]:
        return compact_linears(layers[index], sites.keep(plan, index))

    rebuild(model, templates, sites, plan, linears, picker)
    for i, layer in enumerate(layers):
        made = converted_layer(model, sites, i)
        model.set_submodule(sites.layer_path(i), layer.become(made))
    return model


def converted_layer(model: nn.Module, sites: Sites, index: int) -> Layer:
    """Return layer `index` of a converted model."""
    layer = sites.layer(model, index)
    assert isinstance(layer, Layer)
    return layer


def compact_linears(layer: Layer, keep: LayerKeep) -> dict[str, CompactLinear]:
    """The linears of a converted layer by role, as slicing made them: q, k and v apart again."""
    found: dict[str, Held] = {}
    if isinstance(layer.attention, Attention):
        attention = layer.attention
        sizes = [attention.heads, attention.kv_heads, attention.kv_heads]
        rows = [size * attention.head_dim for size in sizes]
        found |= _split(attention.qkv, ("query", "key", "value"), rows)
        found["output"] = _whole(attention.output)
    elif isinstance(layer.attention, Constant):
        found["output"] = _no_columns(layer, layer.attention.bias)
    if isinstance(layer.cross_attention, CrossAttention):
        cross = layer.cross_attention
        rows = [cross.heads * cross.head_dim] * 2
        found["cross_attention.query"] = _whole(cross.query)
        found |= _split(cross.kv, ("cross_attention.key", "cross_attention.value"), rows)
        found["cross_attention.output"] = _whole(cross.output)
    elif isinstance(layer.cross_attention, Constant):
        found["cross_attention.output"] = _no_columns(layer, layer.cross_attention.bias)
    if isinstance(layer.ffn, FeedForward):
        for role in ("gate", "up", "down"):
            linear = getattr(layer.ffn, role)
            if linear is not None:
                found[role] = _whole(linear)
    elif isinstance(layer.ffn, Constant):
        found["down"] = _no_columns(layer, layer.ffn.bias)
    return {
        role: CompactLinear(weight, bias, *compact_blocks(keep, role), scales)
        for role, (weight, bias, scales) in found.items()
    }


def stock_husk(
    layer: Layer, husk: nn.Module, architecture: Architecture, with_norms: bool = False
) -> nn.Module:
    """Return the stock layer that `layer` was converted from, without data. With `with_norms`, the
    modules it lent to `layer` have their data. Norms have their current eps."""
    lent, factors = lent_modules(layer, architecture), channel_factors(layer, architecture)

    def tensor(name: str, held: Tensor) -> Tensor:
        path, _, part = name.rpartition(".")
        if with_norms and path in lent:
            held = getattr(lent[path], part)
        return factors.get(name, held) if with_norms else held

    stock = again(husk, tensor)
    for path in (*architecture.norms, *architecture.inner_norms):
        norm = stock.get_submodule(path)
        for name in eps_names(norm):
            setattr(norm, name, next(getattr(lent[path], own) for own in eps_names(lent[path])))
    return stock


def lent_modules(layer: Layer, architecture: Architecture) -> dict[str, nn.Module]:
    """Return the modules that a converted layer took unchanged from its stock layer, by their path
    there: norms, a bias by relative position, and scales that are modules."""
    attention, cross, ffn = architecture.attention, architecture.cross, architecture.ffn
    lent: dict[str | None, nn.Module | None] = {
        ffn.norm: layer.ffn_norm,
        attention.norm: layer.attention_norm,
        None if cross is None else cross.norm: layer.cross_norm,
        attention.outlet: layer.attention_scale,
        ffn.outlet: layer.ffn_scale,
        **dict(zip(architecture.attention.head_norms, layer.head_norms or (), strict=True)),
    }
    bias = layer.relative_bias
    lent[attention.relative_bias] = bias.embedding if isinstance(bias, RelativeBias) else bias
    return {
        path: module
        for path, module in lent.items()
        if path is not None and module is not None and not isinstance(module, Scale)
    }


def channel_factors(layer: Layer, architecture: Architecture) -> dict[str, Tensor]:
    """Return the factors of channels that a converted layer took over from tensors of its stock
    layer, by their names there."""
    scales = {
        architecture.attention.scale: layer.attention_scale,
        architecture.ffn.scale: layer.ffn_scale,
    }
    return {
        path: scale.factor
        for path, scale in scales.items()
        if path is not None and isinstance(scale, Scale) and isinstance(scale.factor, Tensor)
    }


def eps_names(norm: nn.Module) -> list[str]:
    """The attributes in which a norm may keep its eps."""
    return [name for name in ("eps", "variance_epsilon") if name in vars(norm)]


def _split(linear: Linear, roles: Sequence[str], rows: Sequence[int]) -> dict[str, Held]:
    """Return weights, biases and scales of linears stacked by rows, by role."""
    weights = linear.dense().split(rows)
    biases, scales = (
        (None,) * len(rows) if held is None else held.split(rows)
        for held in (linear.bias, linear.scales)
    )
    return dict(zip(roles, zip(weights, biases, scales, strict=True), strict=True))


def _whole(linear: Linear) -> Held:
    """Return weight, bias and scales of a linear of one role."""
    return linear.dense(), linear.bias, linear.scales


def _no_columns(layer: Layer, bias: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
    # Some first layers have no norm of attention, and some have no other.
    held = layer.attention_norm if layer.ffn_norm is None else layer.ffn_norm
    norm = held.get_parameter("weight")
    return (norm if bias is None else bias).new_zeros(len(norm), 0), bias, None
