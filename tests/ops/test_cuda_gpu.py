"""What only a GPU can show of the CUDA kernels: graphs, streams, the same bits each time, every
device. SECATEURS_REQUIRE=cuda turns the skips into failures."""

from __future__ import annotations

import os

import pytest
import torch

from ops.conftest import random_weight
from secateurs import ops
from secateurs.formats import VectorWeight
from secateurs.ops._backends import cuda
from secateurs.plan.weight_patterns import VectorNM


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


def calls(m):
    """Each operation on `m` rows, queries or tokens."""
    x, r = torch.randn(2, m, 4096, device="cuda", dtype=torch.bfloat16)
    blocks = weight_on("cuda")
    dense = torch.randn(256, 4096, device="cuda", dtype=torch.bfloat16)
    fours = VectorWeight.pack(dense, VectorNM(2, 4, 1).keep(dense), 1)
    vectors = VectorWeight.pack(dense, VectorNM(2, 4, 64).keep(dense), 64)
    q = torch.randn(2, 4, m, 64, device="cuda", dtype=torch.bfloat16)
    k, v = torch.randn(2, 2, 2, 4096, 64, device="cuda", dtype=torch.bfloat16)
    return {
        "block_sparse_linear": lambda: ops.block_sparse_linear(x, blocks, activation="gelu"),
        "2:4": lambda: ops.pattern_linear(x, fours),
        "vector": lambda: ops.pattern_linear(x, vectors),
        "attention": lambda: ops.attention(q, k, v, causal=True),
        "add_norm": lambda: torch.stack(ops.sum_and_norm(x, r, x[0], rms=True)),
    }


@pytest.mark.parametrize("m", [1, 60, 300])
@pytest.mark.parametrize("name", ["block_sparse_linear", "2:4", "vector", "attention", "add_norm"])
def test_the_same_bits_each_time_and_in_a_graph(name, m):
    call = calls(m)[name]
    first = call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(20):
        graph.replay()
        assert torch.equal(captured, first)
        assert torch.equal(call(), first)


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
