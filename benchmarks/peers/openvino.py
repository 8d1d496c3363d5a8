"""OpenVINO on the CPU, in the precision of the model, or in int8 by nncf's post-training
quantisation with its settings for Transformers."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
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
    package is not installed.

    Args:
        precision: "int8", or None for that of the model.
        calibration: what int8 takes its scales from, one example each.
    """
    import openvino

    # Traced in float32: the precision is the runtime's choice.
    traced = openvino.convert_model(
        _Positional(copy.deepcopy(model).float()), example_input=tuple(inputs.values())
    )
    if precision == "int8":
        traced = _quantised(traced, [tuple(example.values()) for example in calibration])
    traced.reshape({place: list(t.shape) for place, t in enumerate(inputs.values())})
    hint = "bf16" if model.dtype == torch.bfloat16 else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(traced, "CPU", options)
    request = compiled.create_infer_request()

    def run(**given: Tensor) -> Tensor:
        results = request.infer([t.numpy() for t in given.values()], share_inputs=True)
        return torch.from_numpy(results[0])

    return run


def _quantised(traced: Any, examples: Sequence[tuple[Tensor, ...]]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([tuple(t.numpy() for t in example) for example in examples])
    return nncf.quantize(
        traced, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(examples)
    )


class _Positional(nn.Module):
    """Converters trace positions, and one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
