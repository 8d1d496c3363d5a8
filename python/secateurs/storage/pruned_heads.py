"""Heads removed as transformers 4 did it: `prune_heads`, its helper, and the folders it wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.schema import Linear
from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import door, fit
from secateurs.conversion.builder import convert
from secateurs.conversion.slicing import CompactLinear
from secateurs.errors import CheckpointError, PlanError
from secateurs.plan import HeadMask, SparsityPlan
from secateurs.reading import read_tensors, shown, whole
from secateurs.storage.compact_export import export_compact
from secateurs.storage.dense_export import dense_linear
from secateurs.storage.model_folders import checked_skeleton, readable, stock_class

ENTRY = "pruned_heads"  # of config.json
_WEIGHTS = "model.safetensors"


@door
def prune_heads(model: nn.Module, heads: Mapping[int, Iterable[int]]) -> nn.Module:
    """Remove `heads`, numbers of heads by the number of their layer, and return the model as
    `export_compact` does: of torch's own linears, smaller, which can be trained.

    In transformers 4 this was a method, and changed the model; here the model is untouched. What
    comes back has no folder that transformers could open: `convert_compact` and `save` make one.

    Raises PlanError for layers or heads that the model does not have; otherwise as `convert` does.
    """
    return export_compact(convert(model, _plan(find_sites(model), heads)))


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: Iterable[int]
) -> tuple[set[int], Tensor]:
    """Return those of `heads` that are still there, and which of the `n_heads * head_size` rows
    stay, int64, as transformers 4 did.

    Args:
        heads: numbers of heads of the model before any was removed.
        n_heads: how many there are now.
        already_pruned_heads: numbers of heads, as in `heads`, that are gone.
    """
    gone = set(already_pruned_heads)
    new = set(heads) - gone
    places = {head - sum(other < head for other in gone) for head in new}
    kept = torch.tensor([place not in places for place in range(n_heads)], dtype=torch.bool)
    return new, kept.repeat_interleave(head_size).nonzero().flatten()


@door
def open_pruned_heads(directory: str | Path) -> tuple[nn.Module, SparsityPlan]:
    """Read a model that transformers 4 saved with heads removed, which transformers 5 cannot.

    Returns the stock model, with zeros where heads were, and the plan that removes them:
    `convert(*open_pruned_heads(directory))` computes what transformers 4 did.

    Raises CheckpointError for a folder without `pruned_heads` in its config, without
    model.safetensors, or whose tensors do not fit them; PlanError for heads that it cannot have.
    """
    cls, found = stock_class(directory)
    heads = _read(found.get(ENTRY), directory)
    path = Path(directory) / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"expected {_WEIGHTS} in {directory}, got none")
    _, tensors = read_tensors(path, path.stat().st_size)
    with readable(directory, "model"):
        config, empty = checked_skeleton(cls, directory, found)
        sites = find_sites(empty)
        plan = _plan(sites, heads)
        for index in heads:
            _widen(tensors, empty, sites, index, sites.keep(plan, index))
        config.pruned_heads = {}
        model: nn.Module = cls.from_pretrained(None, config=config, state_dict=tensors)
    return model.eval(), plan


def _read(entry: Any, folder: str | Path) -> dict[int, list[int]]:
    """The heads that a config says are gone, by layer."""
    if not (isinstance(entry, dict) and entry):
        raise CheckpointError(
            f"expected {ENTRY} in the config.json of {folder}, as transformers 4 wrote it, got "
            f"{shown(entry)}"
        )
    heads = {}
    for layer, gone in entry.items():
        if not (layer.isdecimal() and isinstance(gone, list) and all(map(whole, gone))):
            raise CheckpointError(
                f"expected lists of heads by layer as {ENTRY} in {folder}, got {shown(entry)}"
            )
        heads[int(layer)] = gone
    return heads


def _plan(sites: Sites, heads: Mapping[int, Iterable[int]]) -> SparsityPlan:
    sites = sites.of_one_stack("prune_heads")
    masks = {}
    for layer, gone in heads.items():
        layer = fit("a layer of heads", layer, int, PlanError)
        if not 0 <= layer < len(sites.layers):
            raise PlanError(f"expected a layer from 0 to {len(sites.layers) - 1}, got {layer}")
        numbers = fit(f"heads of layer {layer}", gone, Iterable[int], PlanError)
        removed = {fit(f"a head of layer {layer}", head, int, PlanError) for head in numbers}
        count = sites.layers[layer].heads
        if strange := removed - set(range(count)):
            raise PlanError(
                f"expected heads from 0 to {count - 1} in layer {layer}, got {sorted(strange)}"
            )
        keep = torch.tensor([head not in removed for head in range(count)])
        masks[sites.name(layer, "heads")] = HeadMask(keep)
    return SparsityPlan(masks)


def _widen(
    tensors: dict[str, Tensor], empty: nn.Module, sites: Sites, index: int, keep: LayerKeep
) -> None:
    """Put zeros where the linears of a layer lost rows or columns, compared with an `empty` model
    that has them all."""
    for linear in sites.layers[index].architecture.attention.linears:
        weight, bias = (f"{_path(sites, index, linear)}.{part}" for part in ("weight", "bias"))
        expected = tuple(int(side.sum()) for side in keep.sides(linear.role))
        if weight not in tensors or tuple(tensors[weight].shape) != expected:
            got = tuple(tensors[weight].shape) if weight in tensors else "none"
            raise CheckpointError(f"expected {weight} of shape {expected}, got {got}")
        compact = CompactLinear(tensors[weight], tensors.get(bias))
        view = sites.linear(empty, index, linear.role)
        wide, wide_bias = dense_linear(view, compact, keep, compact.weight.dtype)
        tensors[weight] = wide
        if wide_bias is not None:
            tensors[bias] = wide_bias


def _path(sites: Sites, index: int, linear: Linear) -> str:
    if linear.shares or linear.transposed:
        raise CheckpointError(
            f"expected linears of their own for query, key and value, got {linear.path}, which "
            "holds all: this folder needs transformers 4"
        )
    return f"{sites.layer_path(index)}.{linear.path}"
