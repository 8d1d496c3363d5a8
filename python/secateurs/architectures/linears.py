"""One linear of a live model, wherever its weight lies: a module of its own, or a part of one that
holds several, in either orientation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from secateurs.architectures.schema import Linear
from secateurs.errors import FamilyError


@dataclass(frozen=True, eq=False)
class LinearView:
    """What a model's module holds of one linear.

    Attributes:
        module: that holds it, maybe with others.
        rows: of the module's outputs that are its own; None for all, or for some of each head.
        head_width: channels of a head of it, where the module holds its linears head by head.
    """

    module: nn.Module
    linear: Linear
    rows: slice | None = None
    head_width: int | None = None

    @property
    def weight(self) -> Tensor:
        """`[N, K]`: the module's parameter itself where that is all of it, else a view of it, or a
        copy where other linears lie between its heads."""
        return self._joined(self._own(self._held()))

    @property
    def bias(self) -> Tensor | None:
        """`[N]`, likewise."""
        held = self.module.bias
        assert held is None or isinstance(held, Tensor)
        return None if held is None else self._joined(self._own(held))

    def outputs(self, x: Tensor) -> Tensor:
        """What the linear gives for `x` `[..., K]`: `[..., N]`."""
        return nn.functional.linear(x, self.weight, self.bias)

    def write(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Let the module hold another weight `[N, K]`, or another bias `[N]`, of this linear. A
        linear without a bias takes none."""
        held = self.module.bias
        for new, whole in ((weight, self._held()), (bias, held)):
            if new is not None:
                assert isinstance(whole, Tensor)
                own = self._own(whole)
                own.copy_(new.reshape(own.shape))

    def _held(self) -> Tensor:
        held = _weight(self.module)
        return held.T if self.linear.transposed else held

    def _own(self, held: Tensor) -> Tensor:
        """A view of its own rows, `[N, ...]`, or `[heads, width, ...]` of those among others."""
        if self.head_width is not None:
            number, parts = self.linear.part
            heads: Tensor = held.unflatten(0, (-1, parts, self.head_width))
            return heads[:, number]
        return held if self.rows is None else held[self.rows]

    def _joined(self, own: Tensor) -> Tensor:
        return own if self.head_width is None else own.flatten(0, 1)


def view(layer: nn.Module, linear: Linear) -> LinearView:
    """The linear of a stock layer."""
    module = layer.get_submodule(linear.path)
    if linear.head_width is not None:
        holder, _, name = linear.head_width.rpartition(".")
        width = getattr(layer.get_submodule(holder), name)
        return LinearView(module, linear, head_width=int(width))
    return LinearView(module, linear, _rows(layer, module, linear))


def _rows(layer: nn.Module, module: nn.Module, linear: Linear) -> slice | None:
    """Where the outputs of a linear are among those of the module that holds it."""
    number, parts = linear.part
    if parts == 1:
        return None
    outputs = _weight(module).shape[1 if linear.transposed else 0]
    if linear.first_as is None:
        first = rest = outputs // parts
    else:
        first = _weight(layer.get_submodule(linear.first_as)).shape[1]
        rest = (outputs - first) // (parts - 1)
    start = 0 if number == 0 else first + (number - 1) * rest
    return slice(start, start + (rest if number else first))


def _weight(module: nn.Module) -> Tensor:
    held = module.weight
    assert isinstance(held, Tensor)
    return held


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Weights or biases one above the other; itself where there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def together(parts: Sequence[Tensor], one: LinearView) -> Tensor:
    """Weights or biases of all linears that a module holds, each with its rows in front, in the
    order of the module's outputs; `one` is a view of any of them."""
    if one.head_width is None:
        return stacked(parts)
    heads = [part.unflatten(0, (-1, one.head_width)) for part in parts]
    return torch.stack(heads, 1).flatten(0, 2)


def joined(parts: Sequence[Tensor], one: LinearView) -> Tensor:
    """What a module stores of the weights `[N, K]`, or biases `[N]`, of all linears that it holds,
    in their order."""
    whole = together(parts, one)
    return whole.T.contiguous() if one.linear.transposed and whole.dim() == 2 else whole


def check_linear(layer: nn.Module, linear: Linear) -> None:
    """Raise FamilyError unless a linear of `layer` is a stock one and computes with the parameters
    it holds: a weight made anew at each call would take no mask, and a subclass may compute more.
    """
    where = f"{linear.path} of {type(layer).__name__}"
    module = module_at(layer, linear.path)
    if module is not None and _is_stock(type(module), linear):
        for name in ("weight", "bias"):
            if name not in module._parameters:
                raise FamilyError(
                    f"expected a plain parameter as {name} of {linear.role} at {where}, but it is "
                    "made anew at each call: make it permanent first (torch.nn.utils.prune.remove, "
                    "remove_weight_norm or remove_spectral_norm)"
                )
        return
    came = "nothing" if module is None else type(module).__name__
    if module is not None and is_parametrized(module):
        hint = "make its parametrizations permanent first (parametrize.remove_parametrizations)"
    elif any(_is_stock(kind, linear) for kind in type(module).__mro__):
        hint = (
            "a subclass may compute more than its weight says: merge it into a torch Linear first"
        )
    else:
        hint = "a converted model cannot be pruned again: prune the dense one"
    wanted = "transformers Conv1D" if linear.transposed else "torch Linear"
    raise FamilyError(f"expected a {wanted} as {linear.role} at {where}, got {came}; {hint}")


def _is_stock(kind: type, linear: Linear) -> bool:
    """Whether a class is the one that holds such a linear. transformers' own is told by its name:
    whoever has an object of it has imported transformers, and nobody else need."""
    if not linear.transposed:
        return kind is nn.Linear
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def module_at(layer: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, None where there is none."""
    try:
        return layer.get_submodule(path)
    except AttributeError:
        return None
