"""export_compact: the stock model with smaller linears, which computes what a converted one does
without any kernel of ours."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import LinearView
from secateurs.architectures.schema import Linear, Side
from secateurs.architectures.sites import Sites
from secateurs.checks import door
from secateurs.conversion.report import conversion_of
from secateurs.conversion.slicing import CompactLinear
from secateurs.errors import PlanError
from secateurs.plan import SparsityPlan
from secateurs.storage.dense_export import DenseLinear, dense_linear, stock_model

# What attention modules call the number of their heads, and the width of all of them.
_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_WIDTHS = ("split_size", "all_head_size")
_ORIGIN = "_secateurs_origin"  # of a compact model


@door
@torch.no_grad()
def export_compact(model: nn.Module) -> nn.Module:
    """The stock model whose layers are as small as the plan leaves them: torch's own linears and
    attention, of other sizes in each layer.

    It computes what the converted model does, and can be trained, and exported by torch.export and
    torch.onnx; `convert_compact` makes it a converted one again. No folder holds it, for its config
    still says the sizes of the dense model: keep the converted one, or a state dict.

    A sub-layer that lost all of its units keeps one that gives nothing. Where heads share key/value
    heads in groups that are no longer equal, each gets a copy of its own. Layers with a bias by
    relative position (T5) keep all heads, zeros in place of those that were removed.

    Raises CheckpointError as `export_dense` does.
    """
    compact: nn.Module = stock_model(model, _compact_linear)
    conversion = conversion_of(getattr(model, "_orig_mod", model))
    sites = conversion.sites
    for i in range(len(sites.layers)):
        _tell_sizes(sites.layer(compact, i), sites.keep(conversion.plan, i))
    vars(compact)[_ORIGIN] = Origin(conversion.plan, sites)
    return compact


class Origin(NamedTuple):
    """What a compact model came of: the plan, and the sites of the dense model."""

    plan: SparsityPlan
    sites: Sites


def origin_of(model: nn.Module) -> Origin:
    """What a compact model came of. Raises PlanError for any other."""
    origin = vars(model).get(_ORIGIN)
    if not isinstance(origin, Origin):
        raise PlanError(
            f"expected a model made by secateurs.export_compact, got {type(model).__name__}"
        )
    return origin


def _compact_linear(
    view: LinearView, compact: CompactLinear | None, keep: LayerKeep, dtype: torch.dtype
) -> DenseLinear:
    """Weight `[N', K']` and bias `[N']` of a linear of a skeleton, in the sizes that are left."""
    if _keeps_size(view.linear, keep):
        return dense_linear(view, compact, keep, dtype)
    rows, columns = (size_of(side, keep) for side in (view.linear.rows, view.linear.columns))
    weight = None if compact is None else _of_own_heads(compact.weight, view.linear, keep)
    bias = None if compact is None or compact.bias is None else compact.bias
    device = "cpu" if compact is None else compact.weight.device
    if weight is None or not weight.numel():
        weight = torch.zeros(rows, columns, dtype=dtype, device=device)
    if view.bias is None:
        return weight, None
    if bias is None:
        return weight, weight.new_zeros(rows)
    return weight, _of_own_heads(bias, view.linear, keep)


def _keeps_size(linear: Linear, keep: LayerKeep) -> bool:
    """Whether a linear keeps the size it has in the dense model: where the bias of its scores is
    made elsewhere, for all heads."""
    if linear in keep.shape.architecture.ffn.linears:
        return False
    return keep.shape.architecture.attention.biased


def size_of(side: Side, keep: LayerKeep) -> int:
    """The length of one side of a linear; of a side without units, that of one unit."""
    if side == "hidden":
        return keep.shape.hidden
    if side == "neurons":
        return max(1, int(keep.neurons.sum()))
    if side == "cross_heads":
        return max(1, int(keep.units["cross_attention.heads"].sum())) * keep.shape.head_dim
    apart = side == "heads" or not keep.grouped
    return max(1, int((keep.heads if apart else keep.kv_heads).sum())) * keep.shape.head_dim


def _of_own_heads(tensor: Tensor, linear: Linear, keep: LayerKeep) -> Tensor:
    """A weight or bias with a copy of a key/value head for each query head, where groups are
    uneven."""
    if linear.rows != "kv_heads" or keep.grouped:
        return tensor
    heads: Tensor = tensor.unflatten(0, (-1, keep.shape.head_dim))
    return heads.index_select(0, keep.kv_of.to(tensor.device)).flatten(0, 1)


def _tell_sizes(layer: nn.Module, keep: LayerKeep) -> None:
    """Let the modules of a layer say the sizes that they have."""
    architecture = keep.shape.architecture
    for path in {linear.path for linear in architecture.linears}:
        module: Any = layer.get_submodule(path)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        else:  # transformers' Conv1D
            module.nx, module.nf = module.weight.shape
    for sublayer in filter(None, (architecture.attention, architecture.cross)):
        query, key, *_ = sublayer.linears
        if _keeps_size(query, keep):
            continue
        attention: Any = layer.get_submodule(sublayer.holder)
        width, kv_width = size_of(query.rows, keep), size_of(key.rows, keep)
        told: dict[str, Any] = {
            **dict.fromkeys(_HEADS, width // keep.shape.head_dim),
            **dict.fromkeys(_WIDTHS, width),
            "num_key_value_heads": kv_width // keep.shape.head_dim,
            "num_key_value_groups": width // kv_width,
        }
        if query.first_as is not None:  # where the config says which part the queries are
            told["config"] = copy.copy(attention.config)
            setattr(told["config"], architecture.heads, width // keep.shape.head_dim)
        vars(attention).update({name: told[name] for name in told.keys() & vars(attention).keys()})
