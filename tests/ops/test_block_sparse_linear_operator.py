"""Block-sparse linear as an operator of torch: what it refuses, and that torch's own checks and
compiler take it."""

from __future__ import annotations

import pytest
import torch
from support.models import opcheck

from ops.conftest import random_weight
from secateurs.errors import BackendError, OperandError
from secateurs.ops import block_sparse_linear, explain_choice, use_backend


def shaped(weight, shape):
    return type(weight)(**{**vars(weight), "shape": shape})


def test_misfits_are_refused_in_words():
    weight, x = random_weight(64, 64), torch.randn(3, 64)
    cases = [
        (dict(x=torch.randn(3, 60)), r"the weight's K = 64, got shape \(3, 60\)"),
        (dict(x=torch.randn(3, 32)), r"the weight's K = 64, got shape \(3, 32\)"),
        (dict(bias=torch.randn(63)), r"bias of shape \(64,\), got \(63,\)"),
        (dict(residual=torch.randn(2, 64)), r"residual of shape \(3, 64\), got \(2, 64\)"),
        (dict(multiplier=torch.randn(64)), r"multiplier of shape \(3, 64\), got \(64,\)"),
        (dict(activation="tanh"), r"activation among none, gelu, .*got 'tanh'"),
        (
            dict(bias=torch.randn(64).double()),
            r"bias in the dtype of x, torch.float32, got torch.float64",
        ),
        (dict(residual=torch.randn(3, 64, device="meta")), r"on cpu like x, got one on meta"),
        (dict(x=torch.tensor(1.0)), r"x \[\.\.\., K\]"),
        (
            dict(x=torch.randn(3, 60), weight=shaped(weight, (64, 60))),
            r"K a multiple of the block's 32, got K = 60",
        ),
        (
            dict(x=torch.randn(3, 10), weight=shaped(weight, (64, 10))),
            r"K a multiple of the block's 32, got K = 10",
        ),
    ]
    for change, message in cases:
        with pytest.raises(OperandError, match=message):
            block_sparse_linear(**{"x": x, "weight": weight, **change})
    for shape, message in (((65, 64), "got 65"), ((32, 64), "got 32")):
        weight.shape = shape
        with pytest.raises(OperandError, match=message):
            block_sparse_linear(x, weight)


def test_cpu_backend_refuses_in_words_and_never_falls_back():
    x = torch.randn(3, 64)
    cases = [
        (
            x.double(),
            random_weight(64, 64, dtype=torch.float64),
            "takes float32 and bfloat16, got torch.float64",
        ),
        (
            x.bfloat16(),
            random_weight(64, 64, dtype=torch.bfloat16),
            "takes bfloat16 weights in pairs of inputs",
        ),
        (x, random_weight(64, 64, (8, 8)), "takes blocks of 16, 32 or 64 outputs, got 8"),
    ]
    for x, weight, message in cases:
        choice = explain_choice(block_sparse_linear, x, weight)
        assert choice.backend == "reference"
        assert message in choice.refusals["cpu"]
        with use_backend("cpu"), pytest.raises(BackendError, match=message):
            block_sparse_linear(x, weight)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_torch_accepts_the_operator(activation):
    weight, x = random_weight(64, 64), torch.randn(3, 64, requires_grad=True)
    args = (
        x,
        weight.values,
        weight.indptr,
        weight.indices,
        64,
        torch.randn(64),
        activation,
        None,
        x.detach(),
    )
    opcheck(torch.ops.secateurs.block_sparse_linear.default, args)


def test_compiles_without_graph_breaks():
    weight, x = random_weight(64, 64), torch.randn(3, 64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(x):
        return block_sparse_linear(block_sparse_linear(x, weight, None, "gelu"), weight, residual=x)

    h = block_sparse_linear(x, weight, None, "gelu")
    assert torch.equal(twice(x), block_sparse_linear(h, weight, residual=x))
