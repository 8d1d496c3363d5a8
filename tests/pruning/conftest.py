"""Batches, and a plan by a method, as tests of methods ask for them."""

from __future__ import annotations

import pytest
import torch

from secateurs import METHODS, SparsityPlan, prune
from secateurs.pruning import Pruner


@pytest.fixture
def batches(batch) -> list[dict[str, torch.Tensor]]:
    name = "input_ids" if "input_ids" in batch else "pixel_values"
    return [batch, {name: batch[name].flip(-1)}]


def facts(method: str) -> type[Pruner]:
    """The class of a method, whose attributes say what it can do and what it needs."""
    return METHODS[method].pruner


def planned(method: str, model, batches, budget: str, **options) -> SparsityPlan:
    return prune(model, batches, method=method, budget=budget, progress=False, **options)
