"""The Triton backend without a GPU: its kernels in Triton's interpreter, and its refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ops.conftest import random_weight
from secateurs.errors import BackendError
from secateurs.ops import block_sparse_linear, explain_choice, use_backend
from secateurs.ops._core import gpu

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_kernels_in_the_interpreter():
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    cases = Path(__file__).with_name("interpreted_triton.py")
    old_numpy = "ignore:Conversion of an array with ndim:DeprecationWarning"  # Triton 3.6's
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", old_numpy]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([*command, str(cases)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def test_a_cpu_tensor_is_refused_in_words():
    args = (torch.randn(2, 64), random_weight(32, 64))
    assert (
        "the tensors are on the CPU"
        in explain_choice(block_sparse_linear, *args).refusals["triton"]
    )
    with use_backend("triton"), pytest.raises(BackendError, match="runs on a GPU"):
        block_sparse_linear(*args)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "interpreting", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(gpu, "_missing", gpu._missing.__wrapped__)
    args = (torch.randn(2, 64), random_weight(32, 64))
    with use_backend("triton"), pytest.raises(BackendError, match="Triton cannot be imported"):
        block_sparse_linear(*args)


CAPABILITIES = {(7, 5): None, (8, 0): 80, (8, 9): 80, (9, 0): 90, (10, 0): 100, (12, 0): 80}


@pytest.mark.parametrize(("capability", "row"), CAPABILITIES.items())
def test_capabilities(monkeypatch, capability, row):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    monkeypatch.setattr(gpu, "_missing", lambda: None)
    reason = gpu._refuse_place(SimpleNamespace(is_cpu=False, device=device))
    if row is None:
        assert reason == "it needs compute capability 8.0 or newer, some GPU has 7.5"
    else:
        assert reason is None
        assert gpu.architecture.__wrapped__(device) == row
