"""Owners of folders of training checkpoints, and which checkpoints are whole.

A run goes on only from what it wrote itself: the folder remembers the run's inputs, and each
checkpoint, once all its files are written, their digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import CheckpointError
from secateurs.files import PARTIAL, flush, sha256, written_whole
from secateurs.plan import SparsityPlan
from secateurs.plan.masks import KeepMask
from secateurs.reading import read_json

RUN, SEAL = "run.json", "complete.json"
# In a config: where a model came from, what saving notes, and what the first loss does.
_NOT_CONTENT = ("_name_or_path", "transformers_version", "architectures", "dtype", "problem_type")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def claim(folder: str | Path, inputs: Mapping[str, str]) -> None:
    """Make `folder` that of the run with these `inputs`: what they are called to what they are.

    Raises CheckpointError, and changes nothing, if it holds checkpoints of another run, or files
    that no run has claimed.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RUN).exists():
            _check_empty(folder)
        elif any(folder.rglob("checkpoint-*")):
            _compare(folder, read_json(folder / RUN), inputs)
        _write(folder / RUN, inputs)
    except OSError as error:
        raise CheckpointError(f"cannot keep checkpoints in {folder}: {error}") from error


def _check_empty(folder: Path) -> None:
    if names := [path.name for path in folder.iterdir() if not path.name.endswith(PARTIAL)]:
        raise CheckpointError(
            f"expected a new folder for checkpoints, or one of this run, but {folder} holds "
            f"{min(names)} and no {RUN}: name another folder, or remove this one"
        )


def _compare(folder: Path, known: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    names = (*inputs, *sorted(known.keys() - inputs.keys()))
    if differ := [name for name in names if known.get(name) != inputs.get(name)]:
        raise CheckpointError(
            f"expected checkpoints of this run in {folder}, got those of one with another "
            f"{', '.join(differ)}: name another folder for this run, or remove that one"
        )


def seal(checkpoint: str | Path) -> None:
    """All files of `checkpoint` are written: make them last, and note their digests."""
    checkpoint = Path(checkpoint)
    files = _files(checkpoint)
    for path in files.values():
        flush(path)
    _write(checkpoint / SEAL, {name: sha256(path) for name, path in files.items()})


def _files(checkpoint: Path) -> dict[str, Path]:
    """All regular files of a checkpoint but the seal, by their names in it."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SEAL)
    return {str(path.relative_to(checkpoint)): path for path in files}


def is_whole(checkpoint: str | Path) -> bool:
    """Whether every file of a checkpoint is there, as it was when the checkpoint was sealed."""
    checkpoint = Path(checkpoint)
    files = _files(checkpoint)
    try:
        noted = read_json(checkpoint / SEAL)
    except CheckpointError:
        return False
    known = bool(noted) and noted.keys() <= files.keys()
    return known and all(sha256(files[n]) == noted[n] for n in noted)


def newest_whole(folder: str | Path) -> Path | None:
    """The last whole checkpoint in `folder`, if there is one."""
    return next((path for path in _checkpoints(folder) if is_whole(path)), None)


def _checkpoints(folder: str | Path) -> list[Path]:
    """From the last step to the first."""
    if not Path(folder).is_dir():
        return []
    steps = {
        path: int(match[1])
        for path in Path(folder).iterdir()
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    }
    return sorted(steps, key=lambda path: -steps[path])


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model's class, config, names and weights, wherever they are."""
    config = getattr(model, "config", None)
    settings = {} if config is None else config.to_dict()
    for name in _NOT_CONTENT:
        settings.pop(name, None)
    digest = hashlib.sha256(f"{type(model).__qualname__} {sorted(settings.items())}\n".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(content.numpy()))
    return digest.hexdigest()


def plan_digest(plan: SparsityPlan) -> str:
    """SHA-256 of what a plan keeps and rounds, not of its notes."""
    digest = hashlib.sha256(values_digest(sorted(plan.levels.items())).encode())
    for name, mask in sorted(plan.masks.items()):
        digest.update(f"{name} {mask.header()} {mask.shape}\n".encode())
        if isinstance(mask, KeepMask):
            digest.update(mask.keep.numpy().tobytes())
    return digest.hexdigest()


def values_digest(values: Iterable[Any]) -> str:
    """SHA-256 of plain values: numbers, texts, and lists and dicts of them, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode())
    return digest.hexdigest()


def _write(path: Path, content: Mapping[str, str]) -> None:
    with written_whole(path) as scratch:
        scratch.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
