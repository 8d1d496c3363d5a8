"""OpenVINO on the CPU, in the precision of the model, or in int8 by nncf's post-training
quantisation with its settings for Transformers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.measurement.peers.answer import Answer


def build(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: str | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> Callable[..., Tensor]:
    """A callable on the model's own inputs, fixed to the shape of `inputs`. Raises ImportError if a
    package is not installed.

    Args:
        precision: "int8", or None for that of the model.
        calibration: what int8 takes its scales from, one example each.
    """
    import openvino

    # Traced in float32: the precision is the runtime's choice.
    traced = openvino.convert_model(
        Answer(copy.deepcopy(model).float(), list(inputs)).eval(),
        example_input=tuple(map(_single, inputs.values())),
    )
    if precision == "int8":
        traced = _quantised(traced, [[example[n] for n in inputs] for example in calibration])
    traced.reshape({place: list(t.shape) for place, t in enumerate(inputs.values())})
    is_half = next(model.parameters()).dtype == torch.bfloat16
    request = request_of(traced, "bf16" if is_half else "f32")

    def run(**given: Tensor) -> Tensor:
        arrays = [_single(given[name]).numpy() for name in inputs]
        return torch.from_numpy(request.infer(arrays, share_inputs=True)[0])

    return run


def request_of(model: Any | Path, precision: str = "f32") -> Any:
    """What runs a model of OpenVINO, or the file of one, on the CPU and as many threads as torch
    has."""
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    options = {"INFERENCE_PRECISION_HINT": precision, **threads}
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _quantised(traced: Any, examples: Sequence[Sequence[Tensor]]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([tuple(t.numpy() for t in example) for example in examples])
    return nncf.quantize(
        traced, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples)
    )
