"""The converted layers of a stack as one call, in place of a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from secateurs import ops
from secateurs.architectures.plain_loop import plain_loop
from secateurs.conversion.modules.layer import Layer, Mixed
from secateurs.conversion.transformers_attention import FOR_OTHERS


class Stack(Mixed, nn.Module):
    """A stock module that loops over its layers, with a loop over all of them at once.

    Everything else in its forward is the stock one's.
    """

    loop: ClassVar[str]  # the attribute that holds the layers

    def forward(self, *args: Any, **named: Any) -> Any:
        layers = list(self.get_submodule(self.loop).children())
        forward: Callable[..., Any] = self.stock.forward
        if ops.recording() or torch.is_grad_enabled() or any(map(_watched, layers)):
            return forward(self, *args, **named)
        return forward(_InOneGo(self, (_Run(layers),)), *args, **named)


@cache
def stack_class(stock: type[nn.Module]) -> type[nn.Module]:
    """`Stack` as a subclass of the class of a stack; the class itself where its forward does more
    with the layers than to call them in turn."""
    kind: Any = stock  # no class of modules is hashable to mypy
    loop = plain_loop(kind)
    if loop is None:
        return stock
    about = {"__module__": stock.__module__, "stock": stock, "maker": stack_class, "loop": loop}
    return type(f"Converted{stock.__name__}", (Stack, stock), about)


class _InOneGo:
    """What the forward of a stack reads as `self`: another sequence of layers, and all else of the
    stack."""

    def __init__(self, stack: Stack, layers: Sequence[Callable[..., Any]]) -> None:
        self._stack = stack
        setattr(self, stack.loop, layers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


class _Run:
    """Layers in turn, as one of them is called."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers

    def __call__(self, hidden_states: Any, *args: Any, **named: Any) -> Any:
        calls = self._prepared(hidden_states, *args, **named)
        if calls:
            return ops.encoder_layers(calls, hidden_states, args[0] if args else None)
        for layer in self._layers:
            hidden_states = layer(hidden_states, *args, **named)
        return hidden_states

    def _prepared(
        self, x: Tensor, mask: Tensor | None = None, *positional: Any, **named: Any
    ) -> list[ops.PreparedEncoderLayer]:
        """Return the bound calls of all layers; none where one of them does not run as one call, or
        has an argument to look at."""
        told = [*positional, *(value for name, value in named.items() if name not in FOR_OTHERS)]
        if any(value is not None and value is not False for value in told):
            return []
        if not (x.is_cpu and ops.plain(x) and ops.plain(mask)) or torch.is_autocast_enabled("cpu"):
            return []
        if mask is not None and mask.dim() != 2:
            return []
        calls = []
        for layer in self._layers:
            if not isinstance(layer, Layer) or layer.whole is None or layer.mixed:
                return []
            call = layer.whole.bound(x)
            if call is None:
                return []
            calls.append(call)
        return calls


def _watched(layer: nn.Module) -> bool:
    """Tell whether anybody sees the calls of a layer."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or "forward" in vars(layer)
        or every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
    )
