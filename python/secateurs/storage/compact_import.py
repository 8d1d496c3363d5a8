"""convert_compact: a model of export_compact, with the weights that training gave it, as a
converted one again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import LinearView, joined, view
from secateurs.architectures.schema import Linear
from secateurs.checks import door
from secateurs.conversion.builder import convert
from secateurs.errors import PlanError
from secateurs.storage.compact_export import Origin, origin_of, size_of
from secateurs.storage.skeleton import named_tensors, place, skeleton


@door
def convert_compact(model: nn.Module, *, precision: str | None = None) -> nn.Module:
    """Convert a model of `export_compact` again, with the weights it has now: after it was trained
    at its small size, say.

    Adapters are merged first (`merge_and_unload` of PEFT). The model is untouched.

    Args:
        precision: as `convert` takes it.

    Raises:
        PlanError: the model is not one of `export_compact`, or has weights now that its plan has no
            place for: copies of a shared key/value head that differ, a weight where the plan masks
            single ones or rounds to levels.
        Otherwise as `convert` does.
    """
    dense, origin = dense_again(model)
    converted: nn.Module = convert(dense, origin.plan, inplace=True, precision=precision)
    return converted


@torch.no_grad()
def dense_again(model: Any) -> tuple[nn.Module, Origin]:
    """The stock model with zeros where a compact one has nothing, and what that one came of. Raises
    PlanError as `convert_compact` does."""
    origin = origin_of(model)
    sites = origin.sites.of_one_stack("what takes a compact model back")
    (path,) = sites.paths
    layers = skeleton(type(model), model.config, {}).get_submodule(path)
    dense = copy.deepcopy(model)
    for i, made in enumerate(layers.children()):
        layer, keep = sites.layer(dense, i), sites.keep(origin.plan, i)
        modules: dict[str, list[Linear]] = {}
        for linear in sites.architecture.linears:
            modules.setdefault(linear.path, []).append(linear)
        for linears in modules.values():
            views = [_view(layer, linear, i) for linear in linears]
            weights, biases = zip(*(_expanded(view, keep) for view in views), strict=True)
            place(made, f"{linears[0].path}.weight", joined(weights, views[0]))
            if biases[0] is not None:
                place(made, f"{linears[0].path}.bias", joined(biases, views[0]))
        for name, tensor in named_tensors(layer).items():
            if name.rpartition(".")[0] not in modules:
                place(made, name, tensor)
    parent, _, name = path.rpartition(".")
    setattr(dense.get_submodule(parent), name, layers)
    return dense.eval(), origin


def _view(layer: nn.Module, linear: Linear, index: int) -> LinearView:
    found = view(layer, linear)
    weight = found.module._parameters.get("weight")
    if type(found.module).__module__.partition(".")[0] not in ("torch", "transformers") or (
        weight is None
    ):
        raise PlanError(
            f"expected a plain linear as layers.{index}.{linear.role} of a compact model, got a "
            f"{type(found.module).__name__}: merge adapters first (merge_and_unload)"
        )
    return found


def _expanded(compact: LinearView, keep: LayerKeep) -> tuple[Tensor, Tensor | None]:
    """Weight `[N, K]` and bias `[N]` of the dense model of a compact linear."""
    linear, weight, bias = compact.linear, compact.weight, compact.bias
    role = linear.role
    size = keep.shape.linears()[role]
    rows, columns = keep.sides(role)
    if tuple(weight.shape) == size:  # that kept its size: nothing lost, or the bias is of all heads
        wide, wide_bias = weight.clone(), None if bias is None else bias.clone()
    else:
        expected = tuple(size_of(side, keep) for side in (linear.rows, linear.columns))
        if tuple(weight.shape) != expected:
            raise PlanError(
                f"expected {role} of shape {expected}, as export_compact made it, got "
                f"{tuple(weight.shape)}"
            )
        lost = not (rows.any() and columns.any())
        wide = weight.new_zeros(size)
        inner = weight.new_zeros(int(rows.sum()), size[1])
        inner[:, columns] = 0 if lost else _one_of_copies(weight, linear, keep)
        wide[rows] = inner
        wide_bias = None if bias is None else bias.new_zeros(size[0])
        if bias is not None and wide_bias is not None and rows.any():
            wide_bias[rows] = _one_of_copies(bias, linear, keep)
    elements = keep.elements(role)
    masked = role in keep.weights and bool((wide[~elements] != 0).any())
    if masked or not torch.equal(keep.rounded(role, wide), wide):
        raise PlanError(
            f"expected {role} under its mask and on its levels, but training changed that: keep "
            "both with secateurs.distill or a Session, or prune by heads and neurons alone"
        )
    return wide, wide_bias


def _one_of_copies(tensor: Tensor, linear: Linear, keep: LayerKeep) -> Tensor:
    """A weight or bias with one key/value head in place of equal copies."""
    if linear.rows != "kv_heads" or keep.grouped:
        return tensor
    copies: Tensor = tensor.unflatten(0, (-1, keep.shape.head_dim))
    of = keep.kv_of.to(tensor.device).long()
    first = torch.stack([(of == head).nonzero()[0, 0] for head in range(int(of.max()) + 1)])
    if not torch.equal(copies[first][of], copies):
        raise PlanError(
            f"expected equal copies of each shared head in {linear.role}, but training made them "
            "differ: its groups are uneven, so leave its key and value as they are"
        )
    return copies[first].flatten(0, 1)
