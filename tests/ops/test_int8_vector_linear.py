"""Int8 vectors against exact integers and the float64 formula: every instruction set, and the
shapes that break kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import oracles
from support.models import opcheck

from ops.conftest import code_vectors
from ops.test_int8_linear import TOLERANCE, product_of_whole_numbers, whole_numbers
from secateurs import _C_cpu
from secateurs.errors import BackendError, OperandError
from secateurs.ops import ACTIVATIONS, explain_choice, int8_vector_linear, use_backend


def assert_exact(x, weight, *rest):
    """Against the formula on the same codes, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        args = [t.to(dtype) if isinstance(t, torch.Tensor) else t for t in (x, *rest)]
        y = int8_vector_linear(args[0], weight, *args[1:])
        assert y.dtype == dtype
        truth = oracles.int8_linear(args[0], weight, *args[1:])
        assert oracles.relative_error(y, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 40])
@pytest.mark.parametrize(
    ("n", "k", "v", "share"),
    [(32, 64, 32, 0.5), (48, 100, 16, 0.3), (64, 31, 64, 0.9), (128, 4096, 128, 0.25),
     (32, 320, 32, 1.0), (96, 7, 32, 0.02)],
)  # fmt: skip
def test_whole_numbers_give_exact_whole_numbers(isa, m, n, k, v, share):
    x, weight = whole_numbers(m, k), code_vectors(n, k, v, share)
    weight.scales.fill_(1)
    expected = product_of_whole_numbers(x, weight)
    assert int(expected.abs().max()) < 2**24
    assert torch.equal(int8_vector_linear(x, weight).long(), expected)


@pytest.mark.parametrize("x", [127, -127])
@pytest.mark.parametrize("w", [127, -127])
def test_the_largest_products_do_not_saturate(isa, x, w):
    """255 * 127 twice is more than 16 bits hold with a sign."""
    k = 1024
    weight = code_vectors(32, k, 32, 1.0, codes=(w, w + 1))
    weight.scales.fill_(1)
    y = int8_vector_linear(torch.full((7, k), float(x)), weight)
    assert torch.equal(y, torch.full((7, 32), float(x * w * k)))


@pytest.mark.parametrize("m", [0, 1, 3, 5, 6, 7, 12, 13, 33, 127])
@pytest.mark.parametrize("v", [16, 32, 64])
def test_any_number_of_rows(isa, m, v):
    assert_exact(torch.randn(m, 384), code_vectors(128, 384, v), torch.randn(128))


@pytest.mark.parametrize("share", [0.03, 0.5])
@pytest.mark.parametrize("threads", [1, 2])
def test_chunks_of_inputs(isa, torch_threads, threads, share):
    """Sums wait between chunks of inputs, in several groups of rows."""
    torch_threads(threads)
    weight = code_vectors(96, 8192, 32, share)
    assert_exact(torch.randn(300, 8192), weight, torch.randn(96), "silu")


def test_more_rows_than_are_packed_at_once(isa):
    assert_exact(torch.randn(1100, 4096), code_vectors(32, 4096, 32, 0.05))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(isa, activation):
    weight, bias = code_vectors(64, 100), torch.randn(64)
    x, multiplier, residual = torch.randn(3, 9, 100), torch.randn(3, 9, 64), torch.randn(3, 9, 64)
    assert_exact(x, weight, bias, activation)
    assert_exact(x, weight, None, activation, multiplier)
    assert_exact(x, weight, bias, activation, multiplier, residual)


@pytest.mark.parametrize("k", [0, 5, 200])
def test_nothing_kept_leaves_the_epilogue(isa, k):
    weight, bias = code_vectors(32, k, 32, 0.0), torch.randn(32)
    assert torch.equal(int8_vector_linear(torch.randn(5, k), weight, bias), bias.expand(5, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("m", [1, 9])
def test_one_bad_input_shows_in_its_row_alone(isa, dtype, bad, m):
    x, weight = torch.randn(m, 200, dtype=dtype), code_vectors(32, 200)
    clean = int8_vector_linear(x, weight)
    x[m // 2, 130] = bad
    y = int8_vector_linear(x, weight)
    assert y[m // 2].isnan().all()
    others = torch.arange(m) != m // 2
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_group_of_which_nothing_is_kept_is_ignored(backend):
    """The second group of outputs keeps nothing of the first 64 inputs."""
    chosen = torch.ones(2, 128).bool()
    chosen[1, :64] = False
    weight = code_vectors(64, 128, 32, chosen=chosen)
    x = torch.randn(4, 128)
    with use_backend(backend):
        clean = int8_vector_linear(x, weight)
        x[:, 3] = torch.nan
        y = int8_vector_linear(x, weight)
    assert y[:, :32].isnan().all()
    assert torch.equal(y[:, 32:], clean[:, 32:])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1.4e-36, 1.6e-36, 1e30])
def test_groups_of_any_size(isa, size):
    x, weight = torch.zeros(3, 128), code_vectors(32, 128)
    x[1, :64], x[1, 64:] = size, 1.0
    weight.scales.mul_(1e-3)
    y = int8_vector_linear(x, weight)
    assert torch.equal(y[[0, 2]], torch.zeros(2, 32))
    x[1, :64] = x[1, :64] if size > 1.5e-36 else 0
    assert oracles.relative_error(y, oracles.int8_linear(x, weight)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("k", "m"), [(257, 3), (90, 17), (64, 1), (100, 33)])
def test_nothing_outside_the_operands_is_read(isa, dtype, k, m):
    """NaN and other codes lie all around, and in the kernel's memory rows of an earlier call."""

    def guarded(t, fill):
        around = t.new_full((t.numel() + 2 * 4096 + 1,), fill)
        inside = around[4097 : 4097 + t.numel()].view(t.shape)  # begins anywhere
        return inside.copy_(t)

    nan = torch.full((m, k), torch.nan, dtype=dtype)
    assert int8_vector_linear(nan, code_vectors(64, k)).isnan().all()
    weight = code_vectors(64, k)
    weight.values, weight.places = guarded(weight.values, 99), guarded(weight.places, 255)
    weight.scales, weight.starts = guarded(weight.scales, torch.nan), guarded(weight.starts, 2**30)
    x, bias, residual = (
        guarded(torch.randn(*s).to(dtype), torch.nan) for s in ((m, k), (64,), (m, 64))
    )
    y = int8_vector_linear(x, weight, bias, "none", None, residual)
    truth = oracles.int8_linear(x, weight, bias, "none", None, residual)
    assert oracles.relative_error(y, truth) < TOLERANCE[dtype]


def test_strided_operands(isa):
    wide = torch.full((18, 211), torch.nan)
    x, residual = wide[:, 3:103], wide[:, 141:205]
    x.copy_(torch.randn(18, 100))
    residual.copy_(torch.randn(18, 64))
    assert_exact(x, code_vectors(64, 100), torch.randn(64, 2)[:, 0], "gelu", None, residual)
    assert_exact(torch.randn(100, 18).T, code_vectors(64, 100))


@pytest.mark.parametrize("m", [4, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(isa, torch_threads, m, dtype):
    x, weight = torch.randn(m, 512, dtype=dtype), code_vectors(512, 512)
    results = []
    for threads in (1, 2, 3, 7):
        torch_threads(threads)
        results.append(int8_vector_linear(x, weight))
    assert all(torch.equal(y, results[0]) for y in results)


def test_the_instruction_set_asked_for_is_the_one_that_runs(isa, monkeypatch):
    ran, kernel = [], _C_cpu.int8_vector_linear
    monkeypatch.setattr(_C_cpu, "int8_vector_linear", lambda **args: ran.append(kernel(**args)))
    int8_vector_linear(torch.randn(2, 32), code_vectors(32, 32))
    int8_vector_linear(torch.randn(2, 32).bfloat16(), code_vectors(32, 32))
    assert ran == [isa, isa]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("v", [1, 32])
def test_reference(dtype, v):
    weight = code_vectors(64, 192, v)
    sizes = ((2, 5, 192), (64,), (2, 5, 64), (2, 5, 64))
    x, bias, multiplier, residual = (torch.randn(*s, dtype=dtype) for s in sizes)
    with use_backend("reference"):
        y = int8_vector_linear(x, weight, bias, "gelu", multiplier, residual)
    assert y.dtype == dtype
    truth = oracles.int8_linear(x, weight, bias, "gelu", multiplier, residual)
    assert oracles.relative_error(y, truth) < {
        torch.float64: 1e-7, torch.float32: 1e-6, torch.bfloat16: 4.5e-3, torch.float16: 1e-3,
    }[dtype]  # fmt: skip


def test_gradients_pass_as_if_nothing_were_rounded():
    weight = code_vectors(64, 100)
    x, bias = torch.randn(3, 100, requires_grad=True), torch.randn(64, requires_grad=True)
    y, up = int8_vector_linear(x, weight, bias), torch.randn(3, 64)
    assert torch.equal(y, int8_vector_linear(x.detach(), weight, bias.detach()))
    y.backward(up)
    dense = oracles.dense_codes(weight) * np.asarray(weight.scales)[:, None]
    torch.testing.assert_close(x.grad, up @ torch.from_numpy(dense).float())
    torch.testing.assert_close(bias.grad, up.sum(0))


def test_opcheck_accepts_the_operator():
    weight = code_vectors(64, 100)
    packed = (weight.values, weight.scales, weight.places, weight.indptr, weight.starts)
    args = (torch.randn(3, 100, requires_grad=True), *packed, torch.randn(64), "gelu", None, None)
    opcheck(torch.ops.secateurs.int8_vector_linear, args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(8, 32, 4)}, "expected values of int8"),
        ({"values": torch.zeros(8, 128, dtype=torch.int8)}, "expected values .words, v, 4"),
        ({"values": torch.zeros(8, 24, 4, dtype=torch.int8)}, "outputs in groups of 24, got 32"),
        ({"scales": torch.ones(32).double()}, "scales of float32"),
        ({"places": torch.zeros(7, 4, dtype=torch.uint8)}, r"expected places \(\d+, 4\)"),
        ({"indptr": torch.zeros(3, dtype=torch.int32)}, r"indptr \(2,\)"),
        ({"starts": torch.zeros(1, 16, dtype=torch.int32)}, r"starts \(1, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weight = code_vectors(32, 64)
    vars(weight).update(change)
    with pytest.raises(OperandError, match=message):
        int8_vector_linear(torch.randn(2, 64), weight)


def test_what_the_kernel_does_not_take_is_refused_in_words():
    choice = explain_choice(int8_vector_linear, torch.randn(2, 64), code_vectors(24, 64, 8))
    assert choice.refusals["cpu"].endswith("outputs that keep the same inputs, got 8")
    with use_backend("cuda"), pytest.raises(BackendError, match="it has no such kernel"):
        int8_vector_linear(torch.randn(2, 64), code_vectors(32, 64))
