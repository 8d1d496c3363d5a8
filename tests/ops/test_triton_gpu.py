"""The Triton kernels on a GPU, where there is one. SECATEURS_REQUIRE=cuda,triton turns the skips
into failures: the names of what must not be missing."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from support import oracles

from ops.conftest import random_weight
from secateurs import ops
from secateurs.formats import VectorWeight
from secateurs.plan.attention_rules import Local, Sinks, Strided, layout
from secateurs.plan.weight_patterns import VectorNM


@pytest.fixture(autouse=True)
def gpu():
    required = os.environ.get("SECATEURS_REQUIRE", "").split(",")
    here = {"cuda": torch.cuda.is_available(), "triton": find_spec("triton") is not None}
    for name, present in here.items():
        if not present:
            (pytest.fail if name in required else pytest.skip)(f"no {name} here")
    with ops.use_backend("triton"):
        yield


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request):
    return getattr(torch, request.param)


def check(got, truth):
    name = str(got.dtype).removeprefix("torch.")
    assert oracles.relative_error(got.float().cpu(), truth) < oracles.TOLERANCE[name]


def cuda(weight):
    for name in ("values", "indptr", "indices"):
        setattr(weight, name, getattr(weight, name).cuda())
    return weight


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("m", [1, 16, 17, 300])
def test_block_sparse_linear(dtype, block, m):
    weight = random_weight(512, 1024, (block, block), 0.4, dtype)
    x, bias = torch.randn(m, 1024).to(dtype), torch.randn(512).to(dtype)
    multiplier, residual = torch.randn(2, m, 512).to(dtype)
    weight.values = weight.values.float()
    args = (x.float(), weight, bias.float(), "gelu", multiplier.float(), residual.float())
    truth = oracles.block_sparse_linear(*args)
    weight.values = weight.values.to(dtype)
    moved = (bias.cuda(), "gelu", multiplier.cuda(), residual.cuda())
    check(ops.block_sparse_linear(x.cuda(), cuda(weight), *moved), truth)


@pytest.mark.parametrize("vector", [16, 32, 64, 128])
@pytest.mark.parametrize("m", [1, 17, 300])
def test_pattern_linear(dtype, vector, m):
    dense = torch.randn(512, 1024).to(dtype) / 32
    family = VectorNM(2, 4, vector)
    packed = VectorWeight.pack(dense.cuda(), family.keep(dense), vector)
    x = torch.randn(m, 1024).to(dtype)
    truth = (x.double() @ family.project(dense).double().T).numpy()
    check(ops.pattern_linear(x.cuda(), packed), truth)


@pytest.mark.parametrize("d", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("tq", "tk"), [(1, 70), (130, 130)])
@pytest.mark.parametrize("patterned", [False, True])
def test_attention(dtype, d, tq, tk, patterned):
    q = torch.randn(2, 4, tq, d).to(dtype)
    k, v = torch.randn(2, 2, 2, tk, d).to(dtype)
    padding = torch.rand(2, tk) < 0.8
    rules = [Local(9) | Sinks(2), Strided(5), Local(40), Sinks(60)]
    mask = None
    if patterned:
        at = torch.arange(tq)[:, None] + tk - tq
        mask = torch.stack([rule.allows(at, torch.arange(tk)) for rule in rules])
        mask = mask[None].expand(2, -1, -1, -1)
    truth = oracles.attention(
        q.float(), k.float(), v.float(), key_mask=padding, mask=mask, causal=True
    )
    blocks = layout(rules, tq, tk, block=32, causal=True, device="cuda") if patterned else None
    got = ops.attention(
        q.cuda(), k.cuda(), v.cuda(), key_mask=padding.cuda(), causal=True, pattern=blocks
    )
    check(got, truth)
