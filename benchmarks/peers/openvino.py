"""OpenVINO on the CPU, in the precision of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def build(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A callable on the model's own inputs. Raises ImportError if the package is not installed."""
    import openvino

    # Traced in float32: the precision is the runtime's choice.
    traced = openvino.convert_model(
        _Positional(copy.deepcopy(model).float()), example_input=tuple(inputs.values())
    )
    hint = "bf16" if model.dtype == torch.bfloat16 else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(traced, "CPU", options)
    request = compiled.create_infer_request()

    def run(**given: Tensor) -> Tensor:
        results = request.infer([t.numpy() for t in given.values()], share_inputs=True)
        return torch.from_numpy(results[0])

    return run


class _Positional(nn.Module):
    """Converters trace positions, and one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
