"""PreparedLayer: the modules of an encoder layer as one operation, for as long as nothing about
them has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from secateurs import ops


class PreparedLayer:
    """One call for the modules of a layer.

    It belongs to the layer it was made for. Where a module was replaced, added or given a hook, or
    one of its settings was changed, there is no such call: the modules run one by one. Where only
    tensors were replaced, or moved, they are bound anew.

    It holds the layer's dictionaries and not the layer, which would be a cycle that keeps weights
    until the garbage is collected.
    """

    def __init__(
        self,
        layer: nn.Module,
        attention: nn.Module | None,
        attention_norm: nn.Module,
        ffn: nn.Module | None,
        ffn_norm: nn.Module,
    ) -> None:
        self._parts: tuple[Any, Any, Any, Any] = (attention, attention_norm, ffn, ffn_norm)
        self._modules = list(layer.modules())[1:]
        self._trees = [layer._modules, *(m._modules for m in self._modules)]
        self._children = _values(self._trees)
        settings = [
            (m, name, value)
            for m in self._modules
            for name, value in vars(m).items()
            if isinstance(value, _SETTINGS) and name != "training" and name[0] != "_"
        ]
        self._owners = [m for m, *_ in settings]
        self._names = [name for _, name, _ in settings]
        self._settings = [value for *_, value in settings]
        self._bound: _Bound | None = None

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Compute the layer of `x` `[B, T, d]` under `mask`, bool `[B, T]`.

        None where it has to run module by module: off the CPU, with gradients, under a mask of
        pairs, or because its modules are no longer those it was made of.
        """
        if not x.is_cpu or torch.is_grad_enabled() or not (mask is None or mask.dim() == 2):
            return None
        if ops.recording() or not (ops.plain(x) and ops.plain(mask)):
            return ops.encoder_layer(x, *self._parts, mask) if self._intact() else None
        call = self.bound(x)
        return None if call is None else call(x, mask)

    def bound(self, x: Tensor) -> ops.PreparedEncoderLayer | None:
        """Return the call bound to the tensors of this moment, for states like `x`; None where the
        modules are no longer those it was made of."""
        bound = self._bound
        if bound is None or not bound.holds():
            self._bound = None
            if not self._intact():
                return None
            call = ops.prepare_encoder_layer(x, *self._parts)
            bound = _Bound(call, self._modules, self._trees, self._owners, self._names)
            self._bound = bound
        return bound.call

    def forget(self) -> None:
        """Release the bound tensors. The next call binds the tensors of that moment."""
        self._bound = None

    def _intact(self) -> bool:
        """Tell whether modules and settings are unchanged and no module has a hook."""
        children = _values(self._trees)
        owners = zip(self._owners, self._names, strict=True)
        return (
            not any(m._forward_hooks or m._forward_pre_hooks for m in self._modules)
            and len(children) == len(self._children)
            and all(a is b for a, b in zip(children, self._children, strict=True))
            and [vars(m).get(n) for m, n in owners] == self._settings
        )

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are those of this process.
        return {**vars(self), "_bound": None}


class _Bound:
    """A call bound to the tensors of a layer, and a snapshot of what must not change after that.

    Between kernels that fill the caches, every line of Python shows in the time of a small layer:
    what is compared is laid out here so that C loops over it.
    """

    def __init__(
        self,
        call: ops.PreparedEncoderLayer,
        modules: list[nn.Module],
        trees: list[dict[str, Any]],
        owners: list[nn.Module],
        names: list[str],
    ) -> None:
        self.call = call
        tensors = [held for m in modules for held in (m._parameters, m._buffers)]
        self._places = [*trees, *tensors]
        self._held = _values(self._places)
        self._tensors = [held for held in _values(tensors) if held is not None]
        self._addresses = [*map(_address, self._tensors)]
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._attributes, self._names = [vars(m) for m in owners], names
        self._settings = [*map(_get, self._attributes, names)]

    def holds(self) -> bool:
        """Tell whether modules, settings and tensors are the same, tensors where they were, and no
        hook watches."""
        held = _values(self._places)
        return (
            len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and not any(self._hooks)
            and [*map(_get, self._attributes, self._names)] == self._settings
            and [*map(_address, self._tensors)] == self._addresses
        )


_SETTINGS = (bool, int, float, str, tuple, type(None))
_get: Callable[[dict[str, Any], str], Any] = dict.get
_address = Tensor.data_ptr


def _values(places: Iterable[dict[str, Any]]) -> list[Any]:
    """Return what the dictionaries hold, one after the other."""
    return [*chain.from_iterable(map(dict.values, places))]
