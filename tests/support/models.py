"""Running models and operations in tests: what an output is, and how far two of them are apart."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def opcheck(op: Any, args: tuple[Any, ...]) -> None:
    """`torch.library.opcheck`. torch 2.14 reads the gradients of tensors in the middle of a graph
    while it makes fake ones of them, and warns of that itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        torch.library.opcheck(op, args)


@torch.no_grad()
def answer(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The main output of a model, on tokens that are not padding."""
    out = model(**batch)[0]
    mask = batch.get("attention_mask")
    return out[mask.bool()] if mask is not None and out.dim() == 3 else out


def calibration(model: nn.Module, count: int, seed: int = 5) -> list[dict[str, Tensor]]:
    """Batches of six sequences of ten tokens, some padded; of images for a model of images."""
    random = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(6, 3, 24, 24, generator=random)} for _ in range(count)]
    batches = []
    for _ in range(count):
        ids = torch.randint(3, 100, (6, 10), generator=random)
        mask = torch.ones_like(ids)
        mask[0, 6:] = 0
        mask[3, 8:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


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


def saved_files(directory: Path) -> tuple[Path, Path]:
    """The weights and the plan of a saved model."""
    names = json.loads((directory / "config.json").read_text())["secateurs"]["sha256"]
    plan = next(name for name in names if "plan" in name)
    return next(directory / name for name in names if name != plan), directory / plan


class Prefers:
    """A cost table by which one form costs nothing."""

    def __init__(self, form: str) -> None:
        self.form = form

    def times(self, name, forms, x, residual):
        return {form: float(not form.startswith(self.form)) for form in forms}
