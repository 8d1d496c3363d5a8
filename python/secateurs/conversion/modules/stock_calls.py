"""Converted layers that are called as their stock classes are, whatever these call their
arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from secateurs.conversion.modules.cross_attention import cache_of_own_states
from secateurs.conversion.modules.layer import Layer


@cache
def layer_class(stock: type[nn.Module]) -> type[Layer]:
    """`Layer` as a subclass of the stock layer: transformers finds the layers whose hidden states
    it returns by class."""
    about: dict[str, Any] = {
        "__module__": stock.__module__,
        "stock": stock,
        "maker": layer_class,
    }
    names = list(inspect.signature(stock.forward).parameters)[2:]
    if "encoder_decoder_position_bias" in names:  # T5, whose first layer makes the bias
        about["forward"] = _forward_with_bias(names)
    elif "position_bias" in names:
        about["forward"] = _forward_with_outer_bias(names)
    elif "output_attentions" in names:
        about["forward"] = _forward_in_a_tuple(names)
    elif "resolution" in names:
        about["forward"] = _forward_of_patches(names)
    elif "layer_past" in names:
        about["forward"] = _forward_with_past(names)
    elif names[:1] != ["attention_mask"] or "encoder_hidden_states" in names:
        about["forward"] = _forward_by_names(names)
    return type(f"Converted{stock.__name__}", (Layer, stock), about)


def _forward_by_names(names: Sequence[str]) -> Callable[..., Tensor]:
    """`forward` of a layer whose stock class takes its arguments behind the states in another
    order: these `names`."""

    def forward(layer: Layer, hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        return Layer.forward(
            layer, hidden_states, **dict(zip(names, positional, strict=False)), **named
        )

    return forward


def _forward_of_patches(names: Sequence[str]) -> Callable[..., Tensor]:
    """`forward` of a layer that makes a bias of its scores for the patches of an image, and may be
    handed one for all layers as a mask."""

    def forward(layer: Layer, x: Tensor, *positional: Any, **named: Any) -> Tensor:
        named |= dict(zip(names, positional, strict=False))
        sides, how = named.pop("resolution", None), named.pop("interpolate_pos_encoding", False)
        bias = named.pop("attention_mask", None)
        if layer.relative_bias is not None:
            window = tuple(side // layer.patch_size for side in sides)
            made = layer.relative_bias(window, how, dim_size=x.shape[1])
            bias = made if bias is None else made + bias
        return Layer.forward(layer, x, scores_bias=bias, **named)

    return forward


def _forward_with_past(names: Sequence[str]) -> Callable[..., Tensor]:
    """`forward` of a layer that calls its cache `layer_past`."""
    by_names = _forward_by_names([name.replace("layer_past", "cache") for name in names])

    def forward(layer: Layer, *args: Any, layer_past: Any = None, **named: Any) -> Tensor:
        if layer_past is not None:
            named["cache"] = layer_past
        return by_names(layer, *args, **named)

    return forward


def _forward_in_a_tuple(names: Sequence[str]) -> Callable[..., tuple[Tensor]]:
    """`forward` of a layer that may have probabilities to return behind its states: the states come
    in a tuple, with or without them."""
    by_names = _forward_by_names(names)

    def forward(layer: Layer, *args: Any, **named: Any) -> tuple[Tensor]:
        return (by_names(layer, *args, **named),)

    return forward


def _forward_with_outer_bias(names: Sequence[str]) -> Callable[..., tuple[Tensor]]:
    """`forward` of a layer that is handed a bias of its scores, and returns its states in a
    tuple."""
    in_a_tuple = _forward_in_a_tuple(names)

    def forward(
        layer: Layer, hidden_states: Tensor, *positional: Any, **named: Any
    ) -> tuple[Tensor]:
        named |= dict(zip(names, positional, strict=False))
        return in_a_tuple(
            layer, hidden_states, scores_bias=named.pop("position_bias", None), **named
        )

    return forward


def _forward_with_bias(names: Sequence[str]) -> Callable[..., tuple[Tensor, Tensor, None]]:
    """`forward` of a layer that hands a bias by relative position on to the next ones: the first
    one makes it, and all return it behind their states."""
    by_names = _forward_by_names(names)

    def forward(
        layer: Layer, hidden_states: Tensor, *positional: Any, **named: Any
    ) -> tuple[Tensor, Tensor, None]:
        named |= dict(zip(names, positional, strict=False))
        bias = named.pop("position_bias", None)
        if bias is None:
            cache = named.get("cache", named.get("past_key_values"))
            bias = layer.bias_of(hidden_states, cache_of_own_states(cache))
        return by_names(layer, hidden_states, scores_bias=bias, **named), bias, None

    return forward
