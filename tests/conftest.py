"""Fixtures of every test: a cache folder of their own, tiny models and their batches."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from support.tiny_models import TEXT_FAMILIES, tiny_model
from support.training import glue_folder
from torch import nn


@pytest.fixture(autouse=True, scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measured costs of a test run are not those of the user's machine."""
    os.environ["SECATEURS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def one_pass_of_meta_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer of SMP sees each batch once: 500 updates take minutes, and no tiny model needs
    them."""
    monkeypatch.setattr("secateurs.pruning.methods.smp.UPDATES", 1)


@pytest.fixture(params=[*TEXT_FAMILIES, "vit"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> nn.Module:
    return tiny_model(family)


@pytest.fixture
def batch(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """Three sequences of nine tokens, two of them padded; three images where the model is one of
    images."""
    random = torch.Generator().manual_seed(1)
    if "family" in request.fixturenames and request.getfixturevalue("family") == "vit":
        return {"pixel_values": torch.randn(3, 3, 24, 24, generator=random)}
    ids = torch.randint(3, 100, (3, 9), generator=random)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[2, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    return glue_folder(tmp_path / "glue")
