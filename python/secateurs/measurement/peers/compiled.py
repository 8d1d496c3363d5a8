"""torch.compile with frozen weights, in the dtype of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.data.batches import main_output


def build(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    precision: str | None = None,
    calibration: Sequence[Mapping[str, Tensor]] = (),
) -> Callable[..., Tensor]:
    """A callable on the model's own inputs. Raises NotImplementedError for a precision other than
    that of the model."""
    from torch._inductor import config

    if precision is not None:
        raise NotImplementedError(f"it runs the dtype of the model here, not {precision}")
    config.freezing = True
    compiled: Any = torch.compile(model)
    with torch.inference_mode():
        compiled(**inputs)
    return lambda **given: main_output(compiled(**given))
