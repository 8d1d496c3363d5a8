"""Where the `cuda` backend says it runs: GPUs it was compiled for, under drivers that take it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ops.conftest import random_weight
from secateurs import ops
from secateurs.ops._backends import cuda


def test_cuda_backend_runs_on_gpus_only():
    weight = random_weight(64, 64, (32, 32), 0.5, torch.float16)
    refusal = ops.explain_choice(ops.block_sparse_linear, torch.randn(3, 64).half(), weight)
    assert refusal.backend == "reference"
    here = "on NVIDIA GPUs, the tensors are on cpu" if cuda.kernels() else "built without CUDA"
    assert here in refusal.refusals["cuda"]


def test_cuda_backend_refuses_gpus_it_was_not_made_for(monkeypatch):
    module = SimpleNamespace(
        build_info=lambda: {"toolkit": "13.0", "archs": "80-real 90a-real"},
        driver_version=lambda: (13, 0),
        runtime_version=lambda: (13, 0),
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    refuse = cuda._refuse_device.__wrapped__
    for toolkit, capability, reason in (
        ("13.0", (9, 0), None),
        ("13.0", (7, 5), "needs compute capability 8.0 or newer, some GPU has 7.5"),
        ("13.0", (12, 0), "compiled for 80-real 90a-real, not for compute capability 12.0"),
        (None, (9, 4), "written for NVIDIA GPUs"),
    ):
        monkeypatch.setattr(torch.version, "cuda", toolkit)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        told = refuse(module, torch.device("cuda", 0))
        assert told is reason or reason in told


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        ("80-real 90a-real", [(8, 0), (8, 6), (8, 9), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        ("89-real", [(8, 9)], [(8, 0), (8, 6), (9, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ("86", [(8, 6), (8, 9), (9, 0)], [(8, 0)]),
    ],
)
def test_cuda_backend_knows_which_gpus_it_was_compiled_for(archs, runs, does_not):
    assert all(cuda._compiled_for(archs, capability) for capability in runs)
    assert not any(cuda._compiled_for(archs, capability) for capability in does_not)
