"""OpenVINO: its own files, a graph and its weights, in the precision that they have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from secateurs.measurement.peers.openvino import request_of

PACKAGES: Sequence[str] = ("openvino",)


def write(program: ExportedProgram, names: Sequence[str], output: str, out: Path) -> Path:
    """Write graph and weights."""
    import openvino

    path = out / "model.xml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about itself
        model = openvino.convert_model(program)
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({output})
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def opened(path: Path, output: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A compiled model on the CPU."""
    request = request_of(path)

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        results = request.infer({name: tensor.numpy() for name, tensor in batch.items()})
        return torch.from_numpy(results[output].copy())

    return run
