"""Random odd sizes, operands that begin between words and rows an odd distance apart: what the
sanitizers of `.ci/run` look for in every kernel, besides its answer."""

from __future__ import annotations

import random

import pytest
import torch
from support import oracles

from ops import test_add_norm, test_encoder_layer, test_pattern_linear
from ops import test_block_sparse_linear as linear
from ops import test_int8_linear as coded
from ops.attention_check import assert_exact as assert_attention
from ops.attention_check import qkv
from ops.conftest import code_vectors, code_weight, paired, random_weight
from secateurs.ops import block_sparse_linear, int8_linear, int8_vector_linear


@pytest.fixture(params=range(4))
def draw(request):
    """Sizes at random: `draw(most)` is odd, `draw(most, even=True)` any."""
    generator = random.Random(request.param)

    def size(most: int, even: bool = False) -> int:
        return generator.randint(1, most) if even else 2 * generator.randint(0, most // 2 - 1) + 1

    return size


def misplaced(x: torch.Tensor) -> torch.Tensor:
    """The same values with the first element in the middle of a word, rows an odd distance apart,
    and NaN between them."""
    *outer, row = x.shape
    apart = row + 1 + row % 2
    memory = torch.full((x.numel() // max(row, 1) * apart + 1,), torch.nan, dtype=x.dtype)
    inside = memory[1:].view(*outer, apart)[..., :row]
    inside.copy_(x)
    return inside


def assert_linear(dtype, x, weight, bias, activation, *rest):
    """Against the formula, each operand cast to `dtype` and misplaced."""
    low = dtype == torch.bfloat16
    weight, bias = paired(weight) if low else weight, bias.to(dtype)
    x, *rest = (misplaced(t.to(dtype)) for t in (x, *rest))
    y = block_sparse_linear(x, weight, bias, activation, *rest)
    off = linear.error(y, x, weight, bias, activation, *rest)
    assert off < (linear.BF16 if low else oracles.TOLERANCE["float32"])


def test_linear(isa, dtype, draw):
    m, n, k = draw(40, even=True), draw(90), draw(160)
    weight, bias = random_weight(n, k, (32, k), density=1.0), torch.randn(n)
    for rows in (1, m):
        rest = torch.randn(2, rows, n)
        assert_linear(dtype, torch.randn(rows, k), weight, bias, "gelu", *rest)
    bk, rows, columns = 2 * draw(20), draw(6), draw(6)
    weight, bias = random_weight(16 * rows, bk * columns, (16, bk)), torch.randn(16 * rows)
    for rows in (1, m):  # a single row of whole words is read as it lies
        assert_linear(dtype, torch.randn(rows, bk * columns), weight, bias, "relu")


def test_int8_linear(isa, dtype, draw):
    m, n, k = draw(40, even=True), draw(90), draw(300)
    for weight in (code_weight(n, k), code_weight(16 * draw(6), 32 * draw(9), (16, 32))):
        n, k = weight.shape
        x, *rest = (misplaced(torch.randn(m, size).to(dtype)) for size in (k, n, n))
        args = (x, weight, torch.randn(n).to(dtype), "gelu", *rest)
        truth = oracles.int8_linear(*args)
        assert oracles.relative_error(int8_linear(*args), truth) < coded.TOLERANCE[dtype]


def test_int8_vectors(isa, dtype, draw):
    m, n, k, v = draw(40, even=True), 64 * draw(4), draw(300), 16 * 2 ** (draw(6) // 2)
    weight = code_vectors(n, k, v, 1 / (1 + draw(8)))
    x, *rest = (misplaced(torch.randn(m, size).to(dtype)) for size in (k, n, n))
    args = (x, weight, torch.randn(n).to(dtype), "gelu", *rest)
    truth = oracles.int8_linear(*args)
    assert oracles.relative_error(int8_vector_linear(*args), truth) < coded.TOLERANCE[dtype]


@pytest.mark.parametrize("rms", [False, True])
def test_norms(isa, dtype, draw, rms):
    operands = test_add_norm.operands((draw(20), draw(300)), dtype)
    test_add_norm.assert_exact([misplaced(x) for x in operands], rms=rms)


@pytest.mark.parametrize("few", [True, False])
def test_attention(isa, dtype, draw, few):
    tq, tk, dim = 2 if few else draw(70, even=True), draw(700), draw(130)
    operands = [misplaced(x) for x in qkv(2, 3, 3, tq, tk, dim, dtype)]
    assert_attention(*operands, causal=tk >= tq, key_mask=torch.rand(2, tk) < 0.8)


def test_patterns(isa, dtype, draw):
    m, k = draw(16, even=True), draw(150)
    x = misplaced(torch.randn(m, k).to(dtype))
    weight = test_pattern_linear.vector_weight(32 * draw(4), k, draw(k + 1), 32, dtype)
    test_pattern_linear.assert_exact(x, weight)
    for block, ones in (((4, 4), draw(14)), ((1, 4), 1)):
        rows, columns = draw(20), draw(20)
        weight = test_pattern_linear.library_weight(
            rows * block[0], columns * 4, block, ones, dtype
        )
        test_pattern_linear.assert_exact(misplaced(torch.randn(m, columns * 4).to(dtype)), weight)


@torch.no_grad()
def test_layers(isa, dtype, draw):
    d, heads = draw(100), draw(4)
    sizes = {"d": d, "heads": heads, "kv_heads": heads, "dim": draw(40), "neurons": draw(90)}
    x = torch.randn(draw(4), draw(20), d).to(dtype)
    test_encoder_layer.assert_exact(x, test_encoder_layer.layer(**sizes, dtype=dtype))
