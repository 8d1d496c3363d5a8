"""What is saved of one layer: the tensors of a converted one under the names of its stock layer."""

from __future__ import annotations

from torch import Tensor, nn

from secateurs.architectures.linears import view
from secateurs.architectures.sites import Sites
from secateurs.conversion.remake import (
    channel_factors,
    compact_linears,
    converted_layer,
    lent_modules,
)
from secateurs.conversion.report import Conversion
from secateurs.storage.layer_reader import SCALES
from secateurs.storage.skeleton import named_tensors


def layer_tensors(
    model: nn.Module, sites: Sites, conversion: Conversion, index: int
) -> dict[str, Tensor]:
    """The tensors of one converted layer under stock names, its linears sliced but dense."""
    layer, path = converted_layer(model, sites, index), sites.layer_path(index)
    architecture = sites.layers[index].architecture
    tensors = {
        f"{path}.{name}.{leaf}": tensor
        for name, module in lent_modules(layer, architecture).items()
        for leaf, tensor in named_tensors(module).items()
    }
    for name, factor in channel_factors(layer, architecture).items():
        tensors[f"{path}.{name}"] = factor
    keep = sites.keep(conversion.plan, index)
    for role, linear in compact_linears(layer, keep).items():
        stock = view(conversion.husks[index], architecture.linear(role))
        name = stock.linear.name
        tensors[f"{path}.{name}.weight"] = linear.weight
        if linear.scales is not None and role not in keep.levels:
            tensors[f"{path}.{name}.{SCALES}"] = linear.scales
        # Of q, k and v as one linear, those without a bias have zeros.
        if linear.bias is not None and stock.bias is not None:
            tensors[f"{path}.{name}.bias"] = linear.bias
    return tensors
