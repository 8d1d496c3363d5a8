"""Int8 linear against exact integers and the float64 formula: every instruction set, and the shapes
that break kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import oracles

from ops.conftest import code_weight
from secateurs import _C_cpu
from secateurs.errors import BackendError, OperandError
from secateurs.formats import Int8Weight
from secateurs.ops import ACTIVATIONS, explain_choice, int8_linear, use_backend

# Sums of a group are exact; what is left are the roundings of floats behind them.
TOLERANCE = {torch.float32: oracles.TOLERANCE["float32"], torch.bfloat16: 2.0**-8 + 5e-4}


def assert_exact(x, weight, *rest):
    """Against the formula on the same codes, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        args = [t.to(dtype) if isinstance(t, torch.Tensor) else t for t in (x, *rest)]
        y = int8_linear(args[0], weight, *args[1:])
        assert y.dtype == dtype
        truth = oracles.int8_linear(args[0], weight, *args[1:])
        assert oracles.relative_error(y, truth) < TOLERANCE[dtype]


def whole_numbers(m, k):
    """`[m, k]`, -127 .. 127, in every 64 of a row one of the ends: they are their own codes."""
    x = torch.randint(-127, 128, (m, k)).float()
    x[:, ::64] = 127 * (1 - 2 * torch.randint(0, 2, x[:, ::64].shape))
    return x


def product_of_whole_numbers(x, weight):
    codes = oracles.dense_codes(weight).astype(np.int64)
    return torch.from_numpy(x.numpy().astype(np.int64) @ codes.T)


SIZES = [
    (32, 64, None),
    (33, 100, None),
    (1, 1, None),
    (70, 31, None),
    (64, 4096, None),
    (96, 320, (32, 32)),
    (64, 96, (16, 32)),
    (128, 256, (64, 64)),
    (64, 384, (32, 128)),
    (50, 640, (64, 32)),
]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 40])
@pytest.mark.parametrize(("n", "k", "block"), SIZES)
def test_whole_numbers_give_exact_whole_numbers(isa, m, n, k, block):
    x, weight = whole_numbers(m, k), code_weight(n, k, block)
    weight.scales.fill_(1)
    expected = product_of_whole_numbers(x, weight)
    assert int(expected.abs().max()) < 2**24
    assert torch.equal(int8_linear(x, weight).long(), expected)


@pytest.mark.parametrize("x", [127, -127])
@pytest.mark.parametrize("w", [127, -127])
def test_the_largest_products_do_not_saturate(isa, x, w):
    """255 * 127 twice is more than 16 bits hold with a sign, and so is 128 * 127 twice."""
    k = 1024  # 127 * 127 * k < 2^24
    weight = code_weight(32, k)
    weight.values.fill_(w + 128)
    weight.scales.fill_(1)
    y = int8_linear(torch.full((7, k), float(x)), weight)
    assert torch.equal(y, torch.full((7, 32), float(x * w * k)))


def test_more_inputs_than_sums_of_32_bits_hold(isa):
    """127 * 127 times more than 2^17 inputs is beyond 2^31."""
    k = 2**17 + 96
    weight = code_weight(16, k)
    weight.values.fill_(255)
    weight.values[:, k // 4 :] = 128
    weight.scales.fill_(1)
    y = int8_linear(torch.full((2, k), 127.0), weight)
    assert y.double() == pytest.approx(torch.full((2, 16), 127.0 * 127 * k).double(), rel=1e-4)


def test_an_outlier_costs_its_own_group_alone(isa):
    """All others of its 64 inputs round to zero beside it; no other group feels it."""
    x, weight = torch.randn(5, 256), code_weight(40, 256)
    clean = x.clone()
    x[:, 70], clean[:, 64:128] = 1e4, 0
    y = int8_linear(x, weight) - int8_linear(clean, weight)
    rounded = (x[:, 64:128] / (1e4 / 127)).round() * (1e4 / 127)
    want = rounded @ torch.from_numpy(oracles.dense_codes(weight)).float()[:, 64:128].T
    assert oracles.relative_error(y, (want * weight.scales).double().numpy()) < 1e-5


def test_weights_and_rows_of_zeros_give_zeros(isa):
    for block in (None, (32, 64)):
        keep = None if block is None else torch.ones(2, 2).bool()
        zeros = torch.zeros(64, 128)
        weight = (
            Int8Weight.pack_dense(zeros) if keep is None else Int8Weight.pack(zeros, keep, block)
        )
        assert not bool(int8_linear(torch.randn(3, 128), weight).any())
    assert not bool(int8_linear(torch.zeros(3, 128), code_weight(64, 128)).any())


@pytest.mark.parametrize("m", [0, 1, 3, 4, 5, 6, 7, 12, 13, 33, 127])
@pytest.mark.parametrize("block", [None, (16, 32), (32, 32), (64, 64), (32, 192)])
def test_any_number_of_rows(isa, m, block):
    assert_exact(torch.randn(m, 384), code_weight(128, 384, block), torch.randn(128))


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (31, 7), (33, 100), (70, 384), (32, 257), (100, 1000), (40, 9000)]
)
@pytest.mark.parametrize("m", [1, 6, 40])
def test_packed_dense_of_any_size(isa, m, n, k):
    x, rest = torch.randn(m, k), (torch.randn(n), "relu", torch.randn(m, n), torch.randn(m, n))
    assert_exact(x, code_weight(n, k), *rest)


@pytest.mark.parametrize("block", [(16, 32), (64, 32), (32, 64), (32, 256)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.95])
def test_chunks_of_inputs(isa, block, density):
    """Several chunks of inputs, with sums carried from one to the next."""
    k = 8192
    assert_exact(torch.randn(40, k), code_weight(128, k, block, density), torch.randn(128), "silu")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "k", "block"), [(70, 600, None), (96, 576, (32, 32))])
def test_many_rows(isa, torch_threads, threads, n, k, block):
    torch_threads(threads)
    m, weight = 400, code_weight(n, k, block)
    multiplier, residual = torch.randn(m, 2 * n)[:, :n], torch.randn(m, n)
    assert_exact(torch.randn(m, k), weight, torch.randn(n), "gelu", multiplier, residual)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(isa, activation):
    weight, bias = code_weight(64, 64, (32, 32)), torch.randn(64)
    x, multiplier, residual = torch.randn(3, 9, 64), torch.randn(3, 9, 64), torch.randn(3, 9, 64)
    assert_exact(x, weight, bias, activation)
    assert_exact(x, weight, None, activation, multiplier)
    assert_exact(x, weight, bias, activation, multiplier, residual)


def test_halves_round_to_even(isa):
    x = torch.zeros(2, 64)
    x[:, 0], x[:, 1:6] = 127, torch.tensor([0.5, 1.5, -2.5, 3.49, -3.51])
    weight = code_weight(32, 64)
    weight.values.fill_(128)
    weight.scales.fill_(1)
    for i in range(5):
        weight.values[0, (1 + i) // 4, i, (1 + i) % 4] = 129
    assert int8_linear(x, weight)[1, :5].tolist() == [0, 2, -2, 3, -4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("m", [1, 9])
def test_one_bad_input_shows_in_its_row_alone(isa, dtype, bad, m):
    x, weight = torch.randn(m, 200, dtype=dtype), code_weight(40, 200)
    clean = int8_linear(x, weight)
    x[m // 2, 130] = bad
    y = int8_linear(x, weight)
    assert y[m // 2].isnan().all()
    others = torch.arange(m) != m // 2
    assert torch.equal(y[others], clean[others])


def test_pruned_block_ignores_infinity(isa):
    assert_pruned_block_ignores_infinity()


def test_the_reference_ignores_infinity_where_a_block_is_pruned():
    with use_backend("reference"):
        assert_pruned_block_ignores_infinity()


def assert_pruned_block_ignores_infinity():
    weight = code_weight(64, 256, (32, 64), 1.0)
    weight.values, weight.indices = weight.values[[0, 5]], weight.indices[[0, 5]]
    weight.indptr = torch.tensor([0, 1, 2], dtype=torch.int32)
    x = torch.randn(4, 256)
    clean = int8_linear(x, weight)
    x[:, 128:] = torch.inf
    assert torch.equal(int8_linear(x, weight), clean)
    x[:, 3] = torch.nan
    assert int8_linear(x, weight)[:, :32].isnan().all()
    assert torch.equal(int8_linear(x, weight)[:, 32:], clean[:, 32:])


@pytest.mark.parametrize("size", [0.0, -0.0, 1e-45, 1e-38, 1.4e-36, 1.6e-36, 1e30, 1e32])
def test_groups_of_any_size(isa, size):
    """Zero, smaller than scales can be, and almost too large for sums in codes of the weight."""
    x, weight = torch.zeros(3, 128), code_weight(32, 128)
    x[1, :64], x[1, 64:] = size, 1.0
    weight.scales.mul_(1e-3)
    y = int8_linear(x, weight)
    assert torch.equal(y[[0, 2]], torch.zeros(2, 32))
    x[1, :64] = x[1, :64] if size > 1.5e-36 else 0
    assert oracles.relative_error(y, oracles.int8_linear(x, weight)) < 1e-6


def test_empty_block_rows_and_empty_weight(isa):
    weight = code_weight(96, 64, (32, 32), 1.0)
    weight.indptr = torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    weight.values, weight.indices = weight.values[:4], weight.indices[:4]
    residual = torch.randn(10, 96)
    assert_exact(torch.randn(10, 64), weight, torch.randn(96), "gelu", None, residual)
    empty = code_weight(96, 64, (32, 32), 0.0)
    assert_exact(torch.randn(10, 64), empty, torch.randn(96), "gelu", None, residual)


def test_no_inputs_at_all(isa):
    bias, weight = torch.randn(32), Int8Weight.pack_dense(torch.zeros(32, 0))
    assert torch.equal(int8_linear(torch.randn(3, 0), weight, bias), bias.expand(3, 32))


def test_output_is_written_once_and_whole(isa, monkeypatch):
    """No cell keeps what the memory held before, and nothing is added to it."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    assert_exact(torch.randn(29, 1024), code_weight(100, 1024), torch.randn(100))
    assert_exact(torch.randn(29, 1024), code_weight(96, 1024, (32, 32), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("k", "m"), [(257, 3), (90, 17), (64, 1), (100, 33)])
def test_nothing_outside_the_operands_is_read(isa, dtype, k, m):
    """All around each operand lies NaN, which one stray product would carry into the output; so do
    rows of an earlier call in the kernel's own memory."""

    def guarded(t, fill):
        around = t.new_full((t.numel() + 2 * 4096 + 1,), fill)
        inside = around[4097 : 4097 + t.numel()].view(t.shape)  # begins anywhere
        return inside.copy_(t)

    nan = torch.full((m, k), torch.nan, dtype=dtype)
    assert int8_linear(nan, code_weight(70, k)).isnan().all()
    weight = code_weight(70, k)
    weight.values, weight.scales = guarded(weight.values, 255), guarded(weight.scales, torch.nan)
    x, bias, residual = (
        guarded(torch.randn(*s).to(dtype), torch.nan) for s in ((m, k), (70,), (m, 70))
    )
    y = int8_linear(x, weight, bias, "none", None, residual)
    truth = oracles.int8_linear(x, weight, bias, "none", None, residual)
    assert oracles.relative_error(y, truth) < TOLERANCE[dtype]


def test_strided_operands(isa):
    wide = torch.full((18, 211), torch.nan)
    x, residual = wide[:, 3:103], wide[:, 141:205]
    x.copy_(torch.randn(18, 100))
    residual.copy_(torch.randn(18, 64))
    assert_exact(x, code_weight(64, 100), torch.randn(64, 2)[:, 0], "gelu", None, residual)
    assert_exact(torch.randn(100, 18).T, code_weight(64, 100))


@pytest.mark.parametrize("block", [None, (32, 32)])
@pytest.mark.parametrize("m", [4, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(isa, torch_threads, m, block, dtype):
    x, weight = torch.randn(m, 512, dtype=dtype), code_weight(512, 512, block)
    results = []
    for threads in (1, 2, 3, 7):
        torch_threads(threads)
        results.append(int8_linear(x, weight))
    assert all(torch.equal(y, results[0]) for y in results)


def test_the_instruction_set_asked_for_is_the_one_that_runs(isa, monkeypatch):
    ran, kernel = [], _C_cpu.int8_linear
    monkeypatch.setattr(_C_cpu, "int8_linear", lambda **args: ran.append(kernel(**args)))
    int8_linear(torch.randn(2, 32), code_weight(32, 32))
    int8_linear(torch.randn(2, 32).bfloat16(), code_weight(32, 32))
    assert ran == [isa, isa]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [None, (32, 32), (8, 64)])
def test_reference(dtype, block):
    weight = code_weight(64, 192, block)
    sizes = ((2, 5, 192), (64,), (2, 5, 64), (2, 5, 64))
    x, bias, multiplier, residual = (torch.randn(*s, dtype=dtype) for s in sizes)
    with use_backend("reference"):
        y = int8_linear(x, weight, bias, "gelu", multiplier, residual)
    assert y.dtype == dtype
    truth = oracles.int8_linear(x, weight, bias, "gelu", multiplier, residual)
    assert oracles.relative_error(y, truth) < {
        torch.float64: 1e-7, torch.float32: 1e-6, torch.bfloat16: 4.5e-3, torch.float16: 1e-3,
    }[dtype]  # fmt: skip


def test_gradients_pass_as_if_nothing_were_rounded():
    weight = Int8Weight.pack_dense(torch.randn(40, 100))
    x, bias = torch.randn(3, 100, requires_grad=True), torch.randn(40, requires_grad=True)
    y = int8_linear(x, weight, bias)
    assert torch.equal(y, int8_linear(x.detach(), weight, bias.detach()))
    up = torch.randn(3, 40)
    y.backward(up)
    torch.testing.assert_close(x.grad, up @ weight.to_dense())
    torch.testing.assert_close(bias.grad, up.sum(0))


def test_rounding_x_and_w_costs_about_one_percent(isa):
    x, w = torch.randn(64, 768), torch.randn(96, 768)
    y = int8_linear(x, Int8Weight.pack_dense(w))
    truth = (x.double() @ w.double().T).numpy()
    assert 2e-3 < oracles.relative_error(y, truth) < 1.5e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(1, 16, 32, 4)}, "expected values of uint8"),
        ({"values": torch.zeros(1, 64, 32, dtype=torch.uint8)}, "expected values .nnz, bk / 4"),
        ({"values": torch.zeros(1, 9, 32, 4, dtype=torch.uint8)}, "expected blocks of 32 inputs"),
        ({"scales": torch.ones(32).double()}, "scales of float32"),
        ({"scales": torch.ones(33)}, "expected between 1 and 32 scales from 1 block rows"),
        ({"indices": torch.zeros(2, dtype=torch.int32)}, "one block column for each of 1 blocks"),
        ({"indptr": torch.zeros(2)}, "expected int32 indices"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    weight = code_weight(32, 64)
    vars(weight).update(change)
    with pytest.raises(OperandError, match=message):
        int8_linear(torch.randn(2, 64), weight)


def test_a_row_of_other_inputs_is_refused():
    with pytest.raises(OperandError, match="the weight's K = 64"):
        int8_linear(torch.randn(2, 32), code_weight(32, 64))


def test_what_the_kernel_does_not_take_is_refused_in_words():
    weight = code_weight(24, 64, (8, 64))
    choice = explain_choice(int8_linear, torch.randn(2, 64), weight)
    assert choice.refusals["cpu"] == "takes blocks of 16, 32 or 64 outputs, got 8"
    with use_backend("cuda"), pytest.raises(BackendError, match="it has no such kernel"):
        int8_linear(torch.randn(2, 64), code_weight(32, 64))
