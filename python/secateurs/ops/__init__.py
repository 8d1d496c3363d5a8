"""Operations: registered with torch, each with several backends and a plain torch reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from secateurs.ops._backends import cpu, cuda
from secateurs.ops._core.dispatch import Choice, use_backend
from secateurs.ops._core.epilogue import ACTIVATIONS
from secateurs.ops._core.recording import plain, recording
from secateurs.ops._core.tuning import autotune
from secateurs.ops.add_norm import add_norm, sum_and_norm
from secateurs.ops.attention import attention
from secateurs.ops.block_sparse_linear import block_sparse_linear, read_in_pairs
from secateurs.ops.encoder_layer import Prepared as PreparedEncoderLayer
from secateurs.ops.encoder_layer import encoder_layer, encoder_layers
from secateurs.ops.encoder_layer import prepare as prepare_encoder_layer
from secateurs.ops.int8_linear import int8_linear
from secateurs.ops.int8_vector_linear import int8_vector_linear
from secateurs.ops.pattern_linear import (
    inputs_together,
    pattern_linear,
    sparse_tensor_cores,
)

__all__ = [
    "ACTIVATIONS",
    "Choice",
    "PreparedEncoderLayer",
    "add_norm",
    "attention",
    "autotune",
    "block_sparse_linear",
    "build_info",
    "encoder_layer",
    "encoder_layers",
    "explain_choice",
    "inputs_together",
    "int8_linear",
    "int8_vector_linear",
    "pattern_linear",
    "plain",
    "prepare_encoder_layer",
    "read_in_pairs",
    "recording",
    "sparse_tensor_cores",
    "sum_and_norm",
    "use_backend",
]


def build_info() -> dict[str, dict[str, Any]]:
    """Describe what was compiled into this installation and what runs here, in plain JSON types."""
    return {"cpu": cpu.build_info(), "cuda": cuda.build_info()}


def explain_choice(op: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Choice:
    """Tell which backend would run `op(*args, **kwargs)`, and why the others would not."""
    module = sys.modules[op.__module__]
    choice: Choice = module.OP.explain(module.arguments(*args, **kwargs))
    return choice
