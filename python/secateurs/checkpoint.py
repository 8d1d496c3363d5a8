"""save, load and export_dense: compact models as plain safetensors, reloaded without pickle or
remote code.

A saved directory holds `config.json` (the stock config and one `secateurs` block),
`model.safetensors` (compact tensors under stock parameter names; a block-sparse weight as
`NAME.values`, `.indptr`, `.indices`; one on levels as their int8 codes) and `plan.safetensors`.
Kernels are chosen, and weights packed for them, on the machine that loads.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig

from secateurs.checks import door
from secateurs.convert import (
    CompactLinear,
    compact_blocks,
    conversion_of,
    rebuild,
)
from secateurs.cost import FormPicker, machine
from secateurs.errors import CheckpointError, FormatError
from secateurs.formats import BlockSparseWeight
from secateurs.modules import Attention, Constant, FeedForward, Layer
from secateurs.plan import SparsityPlan
from secateurs.sites import LayerKeep, Sites, find_sites

FORMAT_VERSION = 1
CONFIG, WEIGHTS, PLAN = "config.json", "model.safetensors", "plan.safetensors"


@door
def save(model: nn.Module, directory: str | Path) -> None:
    """Write a converted model; the files are complete or absent.

    Raises:
        PlanError: the model was not made by `convert` or `load`.
        CheckpointError: `directory` is not a directory, or cannot be written.
    """
    conversion = conversion_of(model)
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"expected a directory to save to, but {directory} is a file")
    tensors = _outer_tensors(model, conversion.sites)
    for i in range(len(conversion.sites.layers)):
        tensors |= _layer_tensors(model, conversion.sites, conversion.plan, i)
    with _written_whole(directory) as scratch:
        save_file(tensors, scratch / WEIGHTS, metadata={"format": "pt"})
        conversion.plan.save(scratch / PLAN)
        config = model.config.to_dict()
        config["architectures"] = [type(model).__name__]
        config["dtype"] = str(model.dtype).removeprefix("torch.")
        config["secateurs"] = {
            "format_version": FORMAT_VERSION,
            # Which form each linear took is bound to the machine it was measured on.
            "forms": {"machine": machine(model.device), "picked": conversion.forms},
            "sha256": {name: _digest(scratch / name) for name in (WEIGHTS, PLAN)},
        }
        (scratch / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@door
@torch.no_grad()
def load(directory: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Read a model written by `save`, packed for the machine and device it is loaded on.

    Raises CheckpointError for a path that is not such a directory, and for truncated or altered
    files.
    """
    directory = Path(directory)
    config_dict = _read_config(directory)
    for name, digest in config_dict["secateurs"]["sha256"].items():
        if not (directory / name).is_file():
            raise CheckpointError(f"expected {name} in {directory}, but it is missing")
        if _digest(directory / name) != digest:
            raise CheckpointError(
                f"{directory / name} is not the file that was saved: truncated or altered"
            )
    plan = SparsityPlan.load(directory / PLAN)
    try:
        tensors = load_file(directory / WEIGHTS, device=str(device))
        model, layer_count = _outer_model(config_dict)
        sites = find_sites(model)
        template = sites.layer(model, 0)
        sites = replace(sites, layers=sites.layers * layer_count)
        plan.validate(sites, sites.fingerprint())
        dtype = getattr(torch, config_dict["dtype"])
        model.to(device=device, dtype=dtype)
        templates = [copy.deepcopy(template) for _ in range(layer_count)]
        compact = [_read_layer(tensors, sites, plan, i, templates[i]) for i in range(layer_count)]
        _read_outer(model, tensors, sites)
        model.config.num_hidden_layers = layer_count
        forms = config_dict["secateurs"]["forms"]
        fixed = forms["picked"] if forms["machine"] == machine(model.device) else None
        return rebuild(model, templates, sites, plan, compact, FormPicker(fixed=fixed))
    except (KeyError, SafetensorError, FormatError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the model in {directory} is damaged: {error}") from error


@door
@torch.no_grad()
def export_dense(model: nn.Module) -> nn.Module:
    """The stock model that computes the same: zeros back in place of what was removed. Loads
    anywhere."""
    conversion = conversion_of(model)
    sites, plan = conversion.sites, conversion.plan
    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"
    config.architectures = [type(model).__name__]
    with torch.random.fork_rng(devices=[]):
        dense = type(model)(config).to(device=model.device, dtype=model.dtype)
    state = _outer_tensors(model, sites)
    for i in range(len(sites.layers)):
        keep, path = sites.keep(plan, i), sites.layer_path(i)
        layer = sites.layer(model, i)
        linears = _stock_linears(layer, sites, keep)
        for role, name in sites.family.linears().items():
            stock = sites.linear(dense, i, role)
            state[f"{path}.{name}.weight"] = torch.zeros_like(stock.weight)
            if stock.bias is not None:
                state[f"{path}.{name}.bias"] = torch.zeros_like(stock.bias)
            if role in linears:
                rows, columns = (side.to(model.device) for side in keep.sides(role))
                inner = stock.weight.new_zeros(int(rows.sum()), stock.in_features)
                inner[:, columns] = linears[role].weight
                state[f"{path}.{name}.weight"][rows] = inner
                if linears[role].bias is not None:
                    state[f"{path}.{name}.bias"][rows] = linears[role].bias
        state |= _norm_tensors(layer, sites, i)
    dense.load_state_dict(state, strict=False)
    dense.tie_weights()
    return dense.eval()


def _layer_tensors(
    model: nn.Module, sites: Sites, plan: SparsityPlan, index: int
) -> dict[str, Tensor]:
    keep, layer = sites.keep(plan, index), sites.layer(model, index)
    path, names = sites.layer_path(index), sites.family.linears()
    tensors = _norm_tensors(layer, sites, index)
    for role, linear in _stock_linears(layer, sites, keep).items():
        name = f"{path}.{names[role]}"
        if linear.bias is not None:
            tensors[f"{name}.bias"] = linear.bias
        grid, block, weight = linear.keep, linear.block, linear.weight
        if role in keep.levels:
            weight = keep.levels[role].codes(weight)
        if grid is None or block is None:
            tensors[f"{name}.weight"] = weight
        else:
            packed = BlockSparseWeight.pack(weight, grid, block)
            tensors[f"{name}.weight.values"] = packed.values
            tensors[f"{name}.weight.indptr"] = packed.indptr
            tensors[f"{name}.weight.indices"] = packed.indices
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _norm_tensors(layer: Layer, sites: Sites, index: int) -> dict[str, Tensor]:
    path, family = sites.layer_path(index), sites.family
    norms = ((family.attention_norm, layer.attention_norm), (family.ffn_norm, layer.ffn_norm))
    return {
        f"{path}.{name}.{key}": value
        for name, norm in norms
        for key, value in norm.state_dict().items()
    }


def _stock_linears(layer: Layer, sites: Sites, keep: LayerKeep) -> dict[str, CompactLinear]:
    """The linears of a converted layer under their stock roles, q, k and v taken apart again."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    if isinstance(layer.attention, Attention):
        attention = layer.attention
        sizes = [attention.heads, attention.kv_heads, attention.kv_heads]
        rows = [size * attention.head_dim for size in sizes]
        weights = attention.qkv.dense().split(rows)
        bias = attention.qkv.bias
        biases = bias.split(rows) if bias is not None else (None,) * 3
        for role, weight, part in zip(("query", "key", "value"), weights, biases, strict=True):
            found[role] = (weight, part)
        found["output"] = (attention.output.dense(), attention.output.bias)
    elif isinstance(layer.attention, Constant):
        found["output"] = _no_columns(layer.attention, keep)
    if isinstance(layer.ffn, FeedForward):
        for role, linear in (
            ("gate", layer.ffn.gate),
            ("up", layer.ffn.up),
            ("down", layer.ffn.down),
        ):
            if linear is not None:
                found[role] = (linear.dense(), linear.bias)
    elif isinstance(layer.ffn, Constant):
        found["down"] = _no_columns(layer.ffn, keep)
    return {
        role: CompactLinear(weight, bias, *compact_blocks(keep, role))
        for role, (weight, bias) in found.items()
    }


def _no_columns(constant: Constant, keep: LayerKeep) -> tuple[Tensor, Tensor | None]:
    like = constant.bias if constant.bias is not None else torch.zeros(0)
    return like.new_zeros(keep.shape.hidden, 0), constant.bias


def _outer_tensors(model: nn.Module, sites: Sites) -> dict[str, Tensor]:
    """Everything outside the layers; of tensors tied to each other, the first."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name.startswith(f"{sites.path}.") or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    return tensors


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CheckpointError(f"expected a directory with a saved model, {directory} is none")
    try:
        config = json.loads((directory / CONFIG).read_text())
        version = config["secateurs"]["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"expected a {CONFIG} with a secateurs block in {directory}: {error!r}"
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory} has checkpoint format {version}, this version reads {FORMAT_VERSION}"
        )
    return config


def _outer_model(config_dict: dict[str, Any]) -> tuple[nn.Module, int]:
    """A stock model with one layer, which lends its norms to all, and the number of layers
    wanted."""
    values = {k: v for k, v in config_dict.items() if k != "secateurs"}
    config = AutoConfig.for_model(**values)
    layer_count = config.num_hidden_layers
    config.num_hidden_layers = 1
    architecture = config_dict["architectures"][0]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise CheckpointError(f"this transformers has no architecture {architecture}")
    with torch.random.fork_rng(devices=[]):
        return cls(config), layer_count


def _read_layer(
    tensors: dict[str, Tensor], sites: Sites, plan: SparsityPlan, index: int, template: nn.Module
) -> dict[str, CompactLinear]:
    keep, path, family = sites.keep(plan, index), sites.layer_path(index), sites.family
    for norm in (family.attention_norm, family.ffn_norm):
        module = template.get_submodule(norm)
        state = {key: tensors.pop(f"{path}.{norm}.{key}") for key in module.state_dict()}
        module.load_state_dict(state, assign=True)
    compact = {}
    for role, name in family.linears().items():
        rows, columns = (int(side.sum()) for side in keep.sides(role))
        grid, block = compact_blocks(keep, role)
        stem = f"{path}.{name}"
        if f"{stem}.weight" in tensors:
            weight = tensors.pop(f"{stem}.weight")
        elif f"{stem}.weight.values" in tensors:
            parts = [tensors.pop(f"{stem}.weight.{p}") for p in ("values", "indptr", "indices")]
            weight = BlockSparseWeight(*parts, shape=(rows, columns)).validate().to_dense()
        else:
            continue  # a removed module, or one without heads or neurons, stores nothing here
        if tuple(weight.shape) != (rows, columns):
            raise FormatError(
                f"{stem}.weight has shape {tuple(weight.shape)}, the plan says {(rows, columns)}"
            )
        if role in keep.levels:
            if weight.dtype != torch.int8:
                raise FormatError(f"expected {stem}.weight as int8 codes, got {weight.dtype}")
            weight = keep.levels[role].values(weight, template.get_submodule(name).weight.dtype)
        compact[role] = CompactLinear(weight, tensors.pop(f"{stem}.bias", None), grid, block)
    return compact


def _read_outer(model: nn.Module, tensors: dict[str, Tensor], sites: Sites) -> None:
    missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [n for n in missing if not n.startswith(f"{sites.path}.") and n not in tied]
    if missing or unexpected:
        raise FormatError(f"missing tensors {missing}, unexpected tensors {unexpected}")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _written_whole(directory: Path) -> Iterator[Path]:
    """A scratch directory whose files move to `directory` once all are written, the config, which
    vouches for the others, last."""
    scratch = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        yield scratch
        directory.mkdir(exist_ok=True)
        for name in (WEIGHTS, PLAN, CONFIG):
            (scratch / name).replace(directory / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model to {directory}: {error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
