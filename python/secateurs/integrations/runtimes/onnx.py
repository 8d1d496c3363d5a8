"""ONNX: one file, run by ONNX Runtime with all its graph optimisations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from secateurs.measurement.peers.onnxruntime import opened

__all__ = ["PACKAGES", "opened", "write"]

PACKAGES: Sequence[str] = ("onnx", "onnxscript", "onnxruntime")


def write(program: ExportedProgram, names: Sequence[str], output: str, out: Path) -> Path:
    """Write the model, weights inside where one file holds them."""
    path = out / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about itself
        made: Any = torch.onnx.export(
            program, (), input_names=names, output_names=[output], dynamo=True, verbose=False
        )
    made.save(path)
    return path
