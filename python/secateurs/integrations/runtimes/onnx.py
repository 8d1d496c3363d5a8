"""ONNX: one file, run by ONNX Runtime with all its graph optimisations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

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


def opened(path: Path, output: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [held.name for held in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: batch[name].numpy() for name in names}
        return torch.from_numpy(session.run([output], arrays)[0])

    return run
