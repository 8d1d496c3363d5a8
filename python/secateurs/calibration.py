"""Calibration: batches of real inputs, checked, and what is read off a model on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from secateurs.errors import DataError

Batch = Mapping[str, Tensor]


def check_batches(batches: Iterable[Batch] | None) -> list[Batch]:
    """The batches as a list. Raises DataError if there are none, or one is not a dict of tensors of
    one length."""
    found = list(batches or ())
    if not found:
        raise DataError("expected at least one batch of data, got an empty dataset")
    for batch in found:
        if not isinstance(batch, Mapping) or not all(isinstance(v, Tensor) for v in batch.values()):
            raise DataError(f"expected batches as dicts of tensors, got {type(batch).__name__}")
        sizes = {value.shape[0] for value in batch.values()}
        if len(sizes) != 1 or sizes == {0}:
            raise DataError(f"expected tensors of one batch size above 0, got {sorted(sizes)}")
    return found


def batch_size(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def to_device(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def shown(items: Iterable[Any], total: int, label: str, progress: bool) -> Iterator[Any]:
    """`items` behind a progress bar, shown on a terminal once the pass has taken two seconds."""
    return iter(
        tqdm(
            items, total=total, desc=label, delay=2, disable=None if progress else True, leave=False
        )
    )


def run(model: nn.Module, batch: Batch) -> Any:
    """`model(**batch)`. Raises DataError if the model does not take these inputs."""
    try:
        return model(**batch)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"expected a batch that {type(model).__name__} takes, got one of "
            f"{', '.join(batch)}: {error}"
        ) from error


def main_output(output: Any) -> Tensor:
    """What a model is for: its logits, else its last hidden states. Raises DataError for other
    outputs."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    raise DataError(
        f"expected an output with logits or last_hidden_state, got {type(output).__name__}"
    )


def token_weights(output: Tensor, batch: Batch) -> Tensor:
    """Ones, or zeros where `output` `[B, T, ...]` stands at padding: what a comparison of outputs
    should count."""
    mask = batch.get("attention_mask")
    if mask is None or output.dim() < 3 or mask.shape != output.shape[:2]:
        return torch.ones((), dtype=output.dtype, device=output.device)
    return mask.to(output.dtype).view(*mask.shape, *[1] * (output.dim() - 2))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients for the parameters; both as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
