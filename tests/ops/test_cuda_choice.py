"""Where the `cuda` backend says it runs: GPUs it was compiled for, under drivers that take it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ops.conftest import random_weight
from secateurs import ops
from secateurs.ops._backends import cuda
from secateurs.ops._core import gpu
from secateurs.ops.attention import OP as ATTENTION
from secateurs.ops.block_sparse_linear import OP as BLOCK_SPARSE
from secateurs.ops.pattern_linear import OP as PATTERN


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


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes a stand-in for a tensor on a GPU of a compute capability."""

    def tensor(capability, *shape, toolkit="13.0"):
        monkeypatch.setattr(torch.version, "cuda", toolkit)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        gpu.architecture.cache_clear()
        numel = torch.Size(shape).numel()
        device = torch.device("cuda", 0)
        return SimpleNamespace(is_cuda=True, device=device, shape=shape, numel=lambda: numel)

    yield tensor
    gpu.architecture.cache_clear()


@pytest.mark.parametrize(
    ("capability", "many"),
    [((9, 0), "triton"), ((10, 0), "triton"), ((8, 0), None), ((8, 9), None), ((12, 0), None)],
)
def test_triton_goes_first_for_many_rows_on_hopper_and_blackwell(on_gpu, capability, many):
    for op in (BLOCK_SPARSE, PATTERN):
        assert op.prefer((on_gpu(capability, 17, 64),)) == many
        assert op.prefer((on_gpu(capability, 4, 5, 64),)) == many
        assert op.prefer((on_gpu(capability, 2, 8, 64),)) is None
        assert op.prefer((on_gpu(capability, 0, 64),)) is None
    assert ATTENTION.prefer((on_gpu(capability, 1, 2, 17, 64),)) == many
    assert ATTENTION.prefer((on_gpu(capability, 64, 32, 16, 64),)) is None


def test_nothing_is_preferred_off_nvidia_gpus(on_gpu):
    assert BLOCK_SPARSE.prefer((on_gpu((9, 4), 4096, 64, toolkit=None),)) is None
    for op in (BLOCK_SPARSE, PATTERN, ATTENTION):
        assert op.prefer((torch.randn(1, 1, 64, 64),)) is None


def test_where_triton_is_missing_many_rows_go_to_cuda(on_gpu, monkeypatch):
    x = on_gpu((9, 0), 4096, 64)
    monkeypatch.setattr(gpu, "_refuse_place", lambda _: "Triton cannot be imported (absent)")
    order = [backend.name for backend in BLOCK_SPARSE._in_order((x,))]
    assert order == ["triton", "cuda", "cpu", "reference"]
    assert "absent" in BLOCK_SPARSE._in_order((x,))[0].refuse((x,))
