"""ONNX Runtime on the CPU with all its graph optimisations, in fp32, or with weights in int8 for
each channel and activations rounded in each call (`quantize_dynamic`)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def build(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: str | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> Callable[..., Any]:
    """A callable on the model's own inputs, fixed to the shape of `inputs`. Raises ImportError if a
    package is not installed, NotImplementedError for another dtype.

    Args:
        precision: "int8", or None for that of the model.
        calibration: not looked at: scales of activations are found in each call.
    """
    import onnxruntime

    if model.dtype != torch.float32:
        raise NotImplementedError(f"it runs float32 here, the model is {model.dtype}")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, kwargs=dict(inputs), f=path, dynamo=True, verbose=False)
        if precision == "int8":
            path = _quantised(path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    names = [i.name for i in session.get_inputs()]

    def run(**given: Tensor) -> Tensor:
        return torch.from_numpy(session.run([first], {n: given[n].numpy() for n in names})[0])

    return run


def _quantised(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    quantised = path.with_name("int8.onnx")
    quantize_dynamic(path, quantised, weight_type=QuantType.QInt8, per_channel=True)
    return quantised
