"""ONNX Runtime on the CPU with all its graph optimisations, in fp32, or with weights in int8 for
each channel and activations rounded in each call (`quantize_dynamic`)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs.measurement.peers.answer import Answer

_OUTPUT = "answer"


def build(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: str | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> Callable[..., Tensor]:
    """A callable on the model's own inputs, fixed to the shape of `inputs`. Raises ImportError if a
    package is not installed, NotImplementedError for another dtype.

    Args:
        precision: "int8", or None for that of the model.
        calibration: not looked at: scales of activations are found in each call.
    """
    dtype = next(model.parameters()).dtype
    if dtype != torch.float32:
        raise NotImplementedError(f"it runs float32 here, the model is {dtype}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            Answer(model, list(inputs)).eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[_OUTPUT],
            dynamo=True,
            verbose=False,
        )
        run = opened(_quantised(path) if precision == "int8" else path, _OUTPUT)
    return lambda **given: run(given)


def opened(path: Path, output: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A session on the CPU and as many threads as torch has, called on inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [held.name for held in session.get_inputs()]

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: batch[name].numpy() for name in names}
        return torch.from_numpy(session.run([output], arrays)[0])

    return run


def _quantised(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    quantised = path.with_name("int8.onnx")
    quantize_dynamic(path, quantised, weight_type=QuantType.QInt8, per_channel=True)
    return quantised
