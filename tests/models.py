"""Running models in tests: what an output is, and how far two of them are apart."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def answer(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The main output of a model, on tokens that are not padding."""
    out = model(**batch)[0]
    mask = batch.get("attention_mask")
    return out[mask.bool()] if mask is not None and out.dim() == 3 else out


def cache_name(model: nn.Module) -> str:
    """What this transformers calls the cache of keys and values."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value wanted. NaN and infinity never pass for
    small."""
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert torch.isfinite(want).all()
    return float(
        (got.detach().double() - want.detach().double()).abs().max()
        / want.detach().double().abs().max()
    )
