"""ONNX Runtime on the CPU, in fp32, with all its graph optimisations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def build(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A callable on the model's own inputs. Raises ImportError if a package is not installed,
    NotImplementedError for another dtype."""
    import onnxruntime

    if model.dtype != torch.float32:
        raise NotImplementedError(f"it runs float32 here, the model is {model.dtype}")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, kwargs=dict(inputs), f=path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    names = [i.name for i in session.get_inputs()]

    def run(**given: Tensor) -> Tensor:
        return torch.from_numpy(session.run([first], {n: given[n].numpy() for n in names})[0])

    return run
