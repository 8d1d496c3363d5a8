"""Model folders, stock or pruned, with their tokenizers; never the network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from secateurs import checkpoint
from secateurs.errors import CheckpointError, DataError


def open_model(path: str | Path) -> nn.Module:
    """The model in a folder, stock or pruned, in evaluation mode.

    Raises CheckpointError if there is none, or it cannot be read.
    """
    if is_pruned(path):
        return checkpoint.load(path)
    name, _ = _architecture(path)
    cls = getattr(transformers, name, None)
    if cls is None:
        raise CheckpointError(f"expected an architecture of transformers in {path}, got {name!r}")
    try:
        return cls.from_pretrained(path, local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot read the model in {path}: {_first_line(error)}") from error


def has_classifier(path: str | Path) -> bool:
    """Whether the model in a folder has a head that classifies sequences."""
    return _architecture(path)[0].endswith("ForSequenceClassification")


def open_classifier(path: str | Path, labels: int, seed: int = 0) -> nn.Module:
    """The model in a folder with a head for so many `labels` (1: a score): its own, or a new one
    made from `seed` where it has none; in evaluation mode.

    Raises CheckpointError for a folder without a model, DataError for a pruned model or a head with
    other labels.
    """
    if is_pruned(path):
        raise DataError(f"expected a dense model to prune, got one that is pruned in {path}")
    _, config = _architecture(path)
    settings: dict[str, Any] = {"num_labels": labels}
    if has_classifier(path):
        has = len(config.get("id2label") or (0, 1))
        if has != labels:
            raise DataError(f"expected a head with {labels} labels, got one with {has} in {path}")
        settings = {}
    kind = "regression" if labels == 1 else "single_label_classification"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            auto = transformers.AutoModelForSequenceClassification
            return auto.from_pretrained(
                path, problem_type=kind, local_files_only=True, **settings
            ).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot read a classifier from {path}: {_first_line(error)}"
        ) from error


def open_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a model folder. Raises DataError if it has none."""
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"expected a tokenizer in {path}: {_first_line(error)}") from error


def is_pruned(path: str | Path) -> bool:
    """Whether a model folder was written by `save`. Raises CheckpointError for any other path."""
    return "secateurs" in _config(path)


def _architecture(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The architecture a model folder names, and its whole config."""
    config = _config(path)
    return str((config.get("architectures") or [None])[0]), config


def _config(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_dir():
        raise CheckpointError(f"expected a directory with a model, {path} is none")
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected a config.json in {path}, got {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(
            f"expected an object in {path}/config.json, got {type(config).__name__}"
        )
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
