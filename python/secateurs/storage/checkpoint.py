"""save, load and export_dense: compact models as plain safetensors, reloaded without pickle or
remote code.

A saved directory holds `config.json` (the stock config, and one `secateurs` block that names the
other files and says what they cannot), the compact tensors under stock names (a block-sparse weight
as `NAME.values`, `.indptr`, `.indices`; one on levels as its int8 codes; one of a model in int8 as
its codes, with their scales beside it) and the plan. Files have names made of their content, under
which stock transformers looks for no weights; where it looks lies a file that ends in a sentence.
The config is replaced behind them, at once, so that whenever a directory is read it holds the old
model or the new one; a model card for people comes last.
Kernels are chosen, and weights packed for them, on the machine that loads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from secateurs.architectures.sites import find_sites
from secateurs.checks import door, dtype_name
from secateurs.conversion.cost import FormPicker, machine
from secateurs.conversion.rebuilding import rebuild
from secateurs.conversion.report import conversion_of
from secateurs.errors import CheckpointError, FormatError, SecateursError
from secateurs.files import PARTIAL, held, sha256, written_by_content, written_whole
from secateurs.plan import SparsityPlan
from secateurs.reading import (
    MOST_JSON,
    StoredTensors,
    one_line,
    opened,
    parse_json,
    shown,
    tensors_header,
    whole,
)
from secateurs.storage import manifest
from secateurs.storage.blueprint import FLOATS, Blueprint, blueprint_of, restored_again
from secateurs.storage.model_card import NAME as CARD
from secateurs.storage.model_card import write_card
from secateurs.storage.model_classes import class_of
from secateurs.storage.sentinel import NAME as SENTINEL
from secateurs.storage.sentinel import write_sentinel
from secateurs.storage.skeleton import check_like, named_tensors, outside, ties

FORMAT_VERSION = 2
CONFIG = "config.json"
WEIGHTS, PLAN = "secateurs", "secateurs-plan"  # what names of files begin with
# Names of weights and of the plan, by format. Stock transformers opens the first weights as what
# they are not.
_NAMES = {
    1: (r"model\.safetensors", r"plan\.safetensors"),
    2: (rf"{WEIGHTS}-[0-9a-f]{{16}}\.safetensors", rf"{PLAN}-[0-9a-f]{{16}}\.safetensors"),
}
_SCRATCH = re.compile(
    rf"\.+({WEIGHTS}|{re.escape(CONFIG)}|{re.escape(SENTINEL)}|{re.escape(CARD)}).*"
    rf"{re.escape(PARTIAL)}"
)
_OPENED_BY_STOCK = re.compile(
    r"(model|pytorch_model|adapter_model)[-.](.*\.)?(safetensors|bin|index\.json)"
)
_DTYPES = {dtype_name(dtype): dtype for dtype in FLOATS}
_MOST_READS = 100  # of a directory that others keep writing to


@door
def save(model: nn.Module, directory: str | Path) -> None:
    """Write a converted model. Whenever a reader comes, or this process dies, the directory holds
    the model it held before or this one.

    Raises:
        PlanError: the model was not made by `convert` or `load`.
        CheckpointError: `load` could not make this model again; `directory` is not a directory,
            cannot be written, or holds weights that stock transformers would open in place of ours.
    """
    converted: Any = getattr(model, "_orig_mod", model)  # where torch.compile made it
    conversion = conversion_of(converted)
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"expected a directory to save to, but {directory} is a file")
    with torch.no_grad():
        blueprint, tensors = blueprint_of(converted)
        restored = restored_again(blueprint, conversion.plan, tensors)
        for index in range(len(restored.layers)):
            restored.linears(index)
    block = _block(blueprint)
    if converted.can_generate():
        block["generation_config"] = converted.generation_config.to_dict()
    # Which form each linear took is bound to the machine it was measured on.
    block["forms"] = {"machine": machine(converted.device), "picked": conversion.forms}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone_in(directory):
            block["replaces"] = _replaced(directory)
            block["sha256"] = {}
            for stem, write in (
                (WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})),
                (PLAN, conversion.plan.save),
            ):
                name, digest = written_by_content(directory, stem, ".safetensors", write)
                block["sha256"][name] = digest
            write_sentinel(directory)
            config = {
                **blueprint.values,
                "architectures": [blueprint.cls.__name__],
                "dtype": dtype_name(blueprint.dtype),
                # Who opens the directory in transformers, and what it opens without us.
                "quantization_config": {"quant_method": "secateurs"},
                "transformers_weights": SENTINEL,
                "secateurs": block,
            }
            with written_whole(directory / CONFIG) as scratch:
                scratch.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            write_card(directory, converted)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model to {directory}: {error}") from error


@door
@torch.no_grad()
def load(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    model_class: type[nn.Module] | None = None,
) -> nn.Module:
    """Read a model written by `save`, packed for the machine and device it is loaded on.

    Args:
        model_class: the class of a model that is not one of transformers' own, which no file brings
            along; needed unless exactly one such class was imported already.

    Raises CheckpointError for a path that is not such a directory, for truncated or altered files,
    and for a model of an own class without `model_class`.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"expected a directory with a saved model, {directory} is none")
    if not (directory / CONFIG).exists():
        raise CheckpointError(
            f"expected a {CONFIG} with a secateurs block in {directory}, got none"
        )
    for _ in range(_MOST_READS):
        with opened(directory / CONFIG) as (file, _):
            try:
                return _load(directory, file.read(MOST_JSON + 1), str(device), model_class)
            except Exception as error:
                # While it is open no other file is the same one. A saver may have replaced it,
                # and removed what it names.
                if not _is_still(directory / CONFIG, file.fileno()):
                    continue
                if isinstance(error, CheckpointError):
                    raise
                told = f"the model in {directory} is damaged: {_told(error)}"
                raise CheckpointError(told) from error
    raise CheckpointError(f"cannot read the model in {directory}: it changes all the time")


def described(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """The config of a saved model, and the names of its weights and of its plan.

    Raises CheckpointError unless it is one of ours, FormatError for names that lead elsewhere.
    """
    with opened(directory / CONFIG) as (file, _):
        values = _parsed(file.read(MOST_JSON + 1), directory)
    return values, _files(values["secateurs"])


def _load(
    directory: Path, config: bytes, device: str, model_class: type[nn.Module] | None
) -> nn.Module:
    values = _parsed(config, directory)
    block = values["secateurs"]
    files = []
    for name in _files(block):
        path = directory / name
        if not path.exists():
            raise CheckpointError(f"expected {name} in {directory}, but it is missing")
        try:
            tensors_header(path)  # before all of a device, or of a file of nothing, is read
            same = sha256(path) == block["sha256"][name]
        except CheckpointError as error:
            raise CheckpointError(f"{name} is truncated or altered: {error}") from None
        if not same:
            raise CheckpointError(f"{path} is not the file that was saved: truncated or altered")
        files.append(path)
    plan = SparsityPlan.load(files[1])
    with opened(files[0]) as (file, size):
        tensors = StoredTensors(file, size, str(files[0]), device)
        return _rebuilt(values, class_of(values, model_class, directory), plan, tensors, device)


def _rebuilt(
    values: Mapping[str, Any],
    cls: type[nn.Module],
    plan: SparsityPlan,
    tensors: Mapping[str, Tensor],
    device: str,
) -> nn.Module:
    """The model of what a config says, one layer read and packed at a time."""
    block = values["secateurs"]
    blueprint = Blueprint(
        cls,
        {name: value for name, value in values.items() if name != "secateurs"},
        block.get("arguments", {}),
        _DTYPES[values["dtype"]],
        {name: _DTYPES[dtype] for name, dtype in block.get("dtypes", {}).items()},
        block.get("tied", {}),
        block.get("settings", {}),
        block.get("precision"),
        block.get("unrounded", []),
    )
    if blueprint.config().num_hidden_layers > len(tensors):
        raise FormatError(f"expected tensors of all layers, got {len(tensors)} tensors")
    if block["format_version"] == 1:
        blueprint, tensors = _from_format_1(blueprint, tensors)
    restored = blueprint.restored(plan, tensors)
    model, forms = restored.model, block["forms"]
    if block.get("generation_config") is not None and model.can_generate():
        model.generation_config = _generation_config(block["generation_config"])
    here = forms["machine"] == machine(torch.device(device))
    picker = FormPicker(
        fixed=forms["picked"] if here else None,
        precision=blueprint.precision,
        stays=dict.fromkeys(blueprint.unrounded, "as it was converted"),
    )
    return rebuild(model, restored.layers, restored.sites, plan, restored.linears, picker)


def _parsed(config: bytes, directory: Path) -> dict[str, Any]:
    """What a config says. Raises CheckpointError unless it is one of ours."""
    where = str(directory / CONFIG)
    if len(config) > MOST_JSON:
        raise CheckpointError(f"expected at most {MOST_JSON} bytes in {where}, got more")
    values = parse_json(config, where)
    block = values.get("secateurs")
    if not isinstance(block, dict) or "format_version" not in block:
        raise CheckpointError(f"expected a {CONFIG} with a secateurs block in {directory}")
    if not (whole(block["format_version"]) and block["format_version"] in _NAMES):
        raise CheckpointError(
            f"{directory} has checkpoint format {shown(block['format_version'])}, this version "
            f"reads 1 to {FORMAT_VERSION}"
        )
    manifest.check(values, where)
    return values


def _files(block: Mapping[str, Any]) -> list[str]:
    """The names of weights and plan. Raises FormatError for any others: none leads elsewhere."""
    names = sorted(block["sha256"], key=lambda name: (PLAN in name or "plan" in name, name))
    patterns = _NAMES[block["format_version"]]
    if len(names) != 2 or not all(map(re.fullmatch, patterns, names)):
        raise FormatError(f"expected digests of weights and of a plan, got those of {shown(names)}")
    return names


def _from_format_1(
    blueprint: Blueprint, tensors: Mapping[str, Tensor]
) -> tuple[Blueprint, dict[str, Tensor]]:
    """Add to a model of format 1 what it left to the constructor and format 2 stores: ties, and
    buffers outside the state dict."""
    model = blueprint.skeleton()
    made, state = named_tensors(model), model.state_dict().keys()
    tied = {name: first for name, first in ties(made).items() if name not in tensors}
    for name in outside(find_sites(model).paths, made):
        # Sizes are compared before any tensor is made for real.
        if name in tensors:
            check_like(name, tensors[name], made[name], tensors[name].dtype)
        elif name in state and name not in tied:
            raise FormatError(f"expected {name}, but it is missing")
    unsaved = blueprint.unsaved()
    device = next(iter(tensors.values())).device
    missing = unsaved.keys() - tensors.keys()
    whole = {**tensors, **{name: unsaved[name].to(device) for name in missing}}
    dtypes = {n: t.dtype for n, t in whole.items() if t.dtype in FLOATS}
    return replace(blueprint, tied=tied, dtypes=dtypes), whole


def _generation_config(values: Mapping[str, Any]) -> GenerationConfig:
    """The generation config that a file says, of what this transformers knows."""
    known = vars(GenerationConfig())
    return GenerationConfig(**{name: value for name, value in values.items() if name in known})


def _block(blueprint: Blueprint) -> dict[str, Any]:
    """What a saved directory says of a model besides its config."""
    precision: dict[str, Any] = {}
    if blueprint.precision is not None:
        precision = {"precision": blueprint.precision, "unrounded": list(blueprint.unrounded)}
    return {
        **precision,
        "format_version": FORMAT_VERSION,
        "model_class": {"module": blueprint.cls.__module__, "name": blueprint.cls.__name__},
        "arguments": dict(blueprint.arguments),
        "dtypes": {name: dtype_name(dtype) for name, dtype in blueprint.dtypes.items()},
        "tied": dict(blueprint.tied),
        "settings": dict(blueprint.settings),
    }


def _replaced(directory: Path) -> list[str]:
    """The files of a model in format 1 that a save into `directory` makes obsolete.

    Raises CheckpointError where other files there are weights to stock transformers: beside our
    config it would open them.
    """
    block = _written_block(directory)
    ours = {"replaces": [], "sha256": {}, **block}
    named = ours["sha256"] if ours.get("format_version") == 1 else ours["replaces"]
    for path in sorted(directory.iterdir()):
        if _OPENED_BY_STOCK.fullmatch(path.name) and path.name not in named:
            raise CheckpointError(
                f"expected a directory without other weights, but stock transformers would open "
                f"{path} in place of the saved model: save elsewhere, or remove it"
            )
    return [name for name in sorted(named) if (directory / name).exists()]


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other savers out of `directory` inside the block. Then remove scratch files and files
    of earlier models."""
    with held(directory) as alone:
        try:
            yield
        finally:
            # Where there are no locks another saver may be at work: what it writes looks the same.
            if alone:
                _sweep(directory)


def _sweep(directory: Path) -> None:
    block = _written_block(directory)
    present = block.get("sha256", {})
    old = block.get("replaces", []) if block.get("format_version") == FORMAT_VERSION else []
    for path in directory.iterdir():
        content = any(re.fullmatch(pattern, path.name) for pattern in _NAMES[FORMAT_VERSION])
        if (
            (content and path.name not in present)
            or _SCRATCH.fullmatch(path.name)
            or (path.name in old and any(re.fullmatch(p, path.name) for p in _NAMES[1]))
        ):
            path.unlink(missing_ok=True)


def _written_block(directory: Path) -> dict[str, Any]:
    """The block of the model in a directory; empty where there is none."""
    try:
        return dict(json.loads((directory / CONFIG).read_bytes())["secateurs"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_still(path: Path, handle: int) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def _told(error: Exception) -> str:
    """Describe an error that any library may have raised."""
    if isinstance(error, SecateursError):
        return one_line(error)
    if isinstance(error, KeyError):
        return f"it names {shown(error.args[0])}, which nothing here knows"
    return f"reading it ends in {type(error).__name__}: {one_line(error)}"
