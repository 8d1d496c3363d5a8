"""A whole encoder layer with linears in codes, against the same kernels called one by one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from support import oracles
from support.models import opcheck

from ops import test_encoder_layer as floats
from ops.attention_check import WITH_LONG_PRODUCTS
from ops.conftest import code_weight
from secateurs.errors import OperandError
from secateurs.ops import (
    add_norm,
    attention,
    block_sparse_linear,
    encoder_layer,
    explain_choice,
    use_backend,
)
from secateurs.ops import int8_linear as coded
from secateurs.ops._backends import cpu

DTYPES = floats.DTYPES


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def in_codes(weight, block=None):
    """A weight in codes in place of one of floats."""
    n, k = weight.shape
    made = code_weight(n, k, block)
    return SimpleNamespace(**vars(made), bias=weight.bias, activation=weight.activation)


def layer(dtype=torch.float32, names=("qkv", "output", "up", "down"), block=None, **sizes):
    """What `encoder_layer` takes behind x, with the linears of these `names` in codes."""
    parts = floats.layer(dtype=dtype, **sizes)
    for part in (parts[0], parts[2]):
        for name in set(names) & vars(part).keys():
            setattr(part, name, in_codes(getattr(part, name), block))
    return parts


def linear(x, weight, *rest, **named):
    op = coded if hasattr(weight, "scales") else block_sparse_linear
    return op(x, weight, weight.bias, *rest, **named)


def one_by_one(x, part, attention_norm, ffn, ffn_norm, key_mask=None):
    def norm(x, p):
        return add_norm(x, None, p.weight, p.bias, p.eps)

    if part is not None:
        joint = linear(x, part.qkv).unflatten(-1, (part.heads + 2 * part.kv_heads, -1))
        q, k, v = joint.transpose(1, 2).split([part.heads, part.kv_heads, part.kv_heads], dim=1)
        short = hasattr(part.qkv, "scales")
        context = attention(q, k, v, kv_of=part.kv_of, key_mask=key_mask, short_products=short)
        context = context.flatten(2)
        x = linear(context, part.output, residual=x)
    x = norm(x, attention_norm)
    if ffn is not None:
        x = linear(linear(x, ffn.up, ffn.up.activation), ffn.down, residual=x)
    return norm(x, ffn_norm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (1, 1), (2, 7), (40, 26)])
def test_the_chain_is_that_of_its_parts(isa, dtype, batch, length):
    x, parts = floats.tokens(batch, length, dtype=dtype), layer(dtype)
    mask = torch.rand(batch, length) < 0.8
    assert torch.equal(encoder_layer(x, *parts, mask), one_by_one(x, *parts, mask))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [("qkv",), ("output", "up"), ("down",)], ids=" ".join)
def test_some_linears_in_codes_and_some_in_floats(isa, dtype, names):
    x, parts = floats.tokens(2, 9, dtype=dtype), layer(dtype, names)
    assert torch.equal(encoder_layer(x, *parts), one_by_one(x, *parts))


@pytest.mark.parametrize("missing", [0, 2])
def test_blocks_and_removed_sub_layers(isa, missing):
    parts = layer(block=(32, 32), d=64, heads=4, kv_heads=4, neurons=96)
    x = floats.tokens(2, 9, 64)
    assert torch.equal(encoder_layer(x, *parts), one_by_one(x, *parts))
    parts[missing] = None
    assert torch.equal(encoder_layer(x, *parts), one_by_one(x, *parts))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_agrees(dtype):
    """But for inputs that lie, to the last bit, between two codes; where attention rounds, many
    do."""
    x, parts = floats.tokens(2, 9, dtype=dtype), layer(dtype)
    with cpu.use_isa(WITH_LONG_PRODUCTS):
        ours = encoder_layer(x, *parts)
    with use_backend("reference"):
        theirs = encoder_layer(x, *parts)
    assert oracles.relative_error(ours, theirs.double().numpy()) < {
        torch.float32: 1e-4, torch.bfloat16: 2e-2,
    }[dtype]  # fmt: skip


def test_scales_may_come_as_their_bits():
    x, parts = floats.tokens(2, 9), layer()
    module = sys.modules[encoder_layer.__module__]
    operands = module.arguments(x, *parts)
    weights = [t.view(torch.int32) if i % 5 == 1 and i < 20 else t
               for i, t in enumerate(operands.weights)]  # fmt: skip
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            want = encoder_layer(x, *parts)
            got = torch.ops.secateurs.encoder_layer(*operands._replace(weights=weights))
            assert torch.equal(got, want)


def test_opcheck():
    module = sys.modules[encoder_layer.__module__]
    args = module.arguments(floats.tokens(2, 9), *layer(), torch.rand(2, 9) < 0.8)
    opcheck(torch.ops.secateurs.encoder_layer.default, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": torch.ones(47)}, "expected 48 scales of down, got 47"),
        ({"scales": torch.ones(48).double()}, "scales of float32"),
        ({"values": torch.ones(2, 24, 32, 4)}, "expected values of uint8"),
        ({"indptr": torch.zeros(3)}, "expected int32 indices"),
    ],
)
def test_codes_that_do_not_fit_are_refused(change, message):
    parts = layer()
    vars(parts[2].down).update(change)
    with pytest.raises(OperandError, match=message):
        encoder_layer(floats.tokens(2, 9), *parts)


def test_blocks_that_the_kernel_does_not_take_are_refused_in_words():
    parts = layer(block=(8, 32), d=64, heads=4, kv_heads=4, neurons=96)
    choice = explain_choice(encoder_layer, floats.tokens(2, 9, 64), *parts)
    assert choice.refusals["cpu"] == "takes blocks of 16, 32 or 64 outputs, got 8"
