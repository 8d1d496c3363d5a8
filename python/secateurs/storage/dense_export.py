"""export_dense: the stock model that computes what a converted one does, zeros where it lost; and
what it shares with export_compact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import LinearView, joined, view
from secateurs.architectures.schema import Linear
from secateurs.checks import door
from secateurs.conversion.report import conversion_of
from secateurs.conversion.slicing import CompactLinear
from secateurs.errors import CheckpointError
from secateurs.storage.blueprint import blueprint_of, restored_again
from secateurs.storage.skeleton import named_tensors, place

# Of a linear: its weight `[N, K]` and its bias `[N]`.
DenseLinear = tuple[Tensor, Tensor | None]
# Makes a linear of a skeleton, of what is left of it and of its layer, in a dtype.
MakeLinear = Callable[[LinearView, CompactLinear | None, LayerKeep, torch.dtype], DenseLinear]


@door
@torch.no_grad()
def export_dense(model: nn.Module) -> nn.Module:
    """The stock model that computes the same: zeros back in place of what was removed. Loads
    anywhere.

    Raises CheckpointError where no config makes such a model of its class, and for one with
    attention rules.
    """
    dense: nn.Module = stock_model(model, dense_linear)
    return dense


def stock_model(model: nn.Module, make: MakeLinear) -> Any:
    """The stock model of what `make` makes of the linears of a converted one. Raises as
    `export_dense` does."""
    converted: Any = getattr(model, "_orig_mod", model)  # where torch.compile made it
    plan, sites = conversion_of(converted).plan, conversion_of(converted).sites
    for i in range(len(sites.layers)):
        if sites.keep(plan, i).kept_rules is not None:
            raise CheckpointError(
                "expected a model whose weights say it all, but "
                f"{sites.name(i, 'attention_rules')} hides keys, which no stock model can: "
                "secateurs.apply runs the dense model under them"
            )
    blueprint, tensors = blueprint_of(converted)
    stock = blueprint.of_stock()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, first in blueprint.tied.items():
        if name not in stock.tied:
            tensors[name] = tensors[first].clone()
    for name, made in stock.unsaved().items():
        if not torch.equal(made.to(tensors[name]), tensors[name]):
            raise CheckpointError(
                f"expected {name} as {stock.cls.__name__} makes it of its config: no file of a "
                "dense model holds another"
            )
    restored = restored_again(stock, plan, tensors)
    for i, layer in enumerate(restored.layers):
        keep, compact = restored.sites.keep(plan, i), restored.linears(i)
        path = restored.sites.layer_path(i)
        architecture = keep.shape.architecture
        for module in dict.fromkeys(linear.path for linear in architecture.linears):
            linears = architecture.held_at(module)
            parts = [
                make(
                    view(layer, linear),
                    compact.get(linear.role),
                    keep,
                    stock.dtype_of(f"{path}.{linear.name}.weight"),
                )
                for linear in linears
            ]
            _place_joined(layer, linears[0], parts)
    dense: Any = restored.model.to(converted.device)
    for name, tensor in named_tensors(dense).items():
        if tensor.device.type == "meta":
            raise CheckpointError(f"expected a stock layer, but it has a tensor of its own: {name}")
    if converted.can_generate():
        dense.generation_config = copy.deepcopy(converted.generation_config)
    return dense.eval()


def dense_linear(
    view: LinearView, compact: CompactLinear | None, keep: LayerKeep, dtype: torch.dtype
) -> DenseLinear:
    """Weight `[N, K]` and bias `[N]` of a linear of a skeleton: the values of a compact one, zeros
    elsewhere."""
    device = None if compact is None else compact.weight.device
    weight = torch.zeros(view.weight.shape, dtype=dtype, device=device or "cpu")
    bias = None if view.bias is None else weight.new_zeros(len(weight))
    if compact is not None:
        rows, columns = (side.to(weight.device) for side in keep.sides(view.linear.role))
        inner = weight.new_zeros(int(rows.sum()), weight.shape[1])
        inner[:, columns] = compact.weight
        weight[rows] = inner
        if bias is not None and compact.bias is not None:
            bias = bias.to(compact.bias.dtype)
            bias[rows] = compact.bias
    return weight, bias


def _place_joined(layer: nn.Module, linear: Linear, parts: Sequence[DenseLinear]) -> None:
    """Give the module of `linear` the weights and biases of all linears it holds."""
    (weights, biases), one = zip(*parts, strict=True), view(layer, linear)
    place(layer, f"{linear.path}.weight", joined(weights, one))
    if biases[0] is not None:
        place(layer, f"{linear.path}.bias", joined(biases, one))
