"""What only a GPU can show of the CUDA kernels: graphs, streams, the same bits each time, every
device. SECATEURS_REQUIRE=cuda turns the skips into failures."""

from __future__ import annotations

import os

import pytest
import torch

from ops.conftest import random_weight
from secateurs import ops
from secateurs.ops import cuda


@pytest.fixture(autouse=True)
def gpu():
    if cuda.kernels() is None or not torch.cuda.is_available():
        required = "cuda" in os.environ.get("SECATEURS_REQUIRE", "").split(",")
        (pytest.fail if required else pytest.skip)("no GPU here, or built without CUDA")
    with ops.use_backend("cuda"):
        yield


def weight_on(device, density=0.3):
    """Few rows of blocks, one of them long: it is cut among thread blocks."""
    weight = random_weight(256, 4096, (64, 64), density, torch.bfloat16)
    for name in ("values", "indptr", "indices"):
        setattr(weight, name, getattr(weight, name).to(device))
    return weight


@pytest.mark.parametrize("m", [1, 300])
def test_the_same_bits_each_time_and_in_a_graph(m):
    weight = weight_on("cuda")
    x = torch.randn(m, 4096, device="cuda", dtype=torch.bfloat16)
    first = ops.block_sparse_linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.block_sparse_linear(x, weight)
    for _ in range(20):
        graph.replay()
        assert torch.equal(captured, first)
        assert torch.equal(ops.block_sparse_linear(x, weight), first)


def test_the_current_stream_is_the_one_used():
    """A long wait on a side stream, then our kernel there: it must come after what it reads."""
    weight = weight_on("cuda")
    x = torch.zeros(16, 4096, device="cuda", dtype=torch.bfloat16)
    filled = torch.randn_like(x)
    want = ops.block_sparse_linear(filled, weight)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        x.copy_(filled)
        got = ops.block_sparse_linear(x, weight)
    side.synchronize()
    assert torch.equal(got, want)


def test_any_device():
    """The tensors decide, not the device that is current."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    x = torch.randn(5, 4096, dtype=torch.bfloat16)
    weight = weight_on(last)
    got = ops.block_sparse_linear(x.to(last), weight)
    assert got.device == last
    assert torch.cuda.current_device() == 0
    for name in ("values", "indptr", "indices"):
        setattr(weight, name, getattr(weight, name).to("cuda:0"))
    assert torch.equal(got.cpu(), ops.block_sparse_linear(x.to("cuda:0"), weight).cpu())
