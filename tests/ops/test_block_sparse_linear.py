"""Block-sparse linear against the float64 formula: every instruction set, and the shapes that break
kernels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support import oracles

from ops.conftest import paired, random_weight
from secateurs import _C_cpu
from secateurs.ops import ACTIVATIONS, block_sparse_linear, use_backend
from secateurs.ops._backends import cpu


def error(y, *args, **kwargs):
    return oracles.relative_error(y, oracles.block_sparse_linear(*args, **kwargs))


def assert_exact(*args, **kwargs):
    assert (
        error(block_sparse_linear(*args, **kwargs), *args, **kwargs) < oracles.TOLERANCE["float32"]
    )


# Operands are exact and sums are floats: what is left is one rounding to 8 bits, and an activation
# that is short of that.
BF16 = 2.0**-8 + 5e-4


def assert_rounded_once(x, weight, *rest):
    """The same call in bfloat16."""
    low = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in (x, *rest)]
    args = (low[0], paired(weight), *low[1:])
    y = block_sparse_linear(*args)
    assert y.dtype == torch.bfloat16
    assert error(y, *args) < BF16


@pytest.fixture(params=[assert_exact, assert_rounded_once], ids=["fp32", "bf16"])
def check(request):
    """Compares a call, given in float32, with the formula: as it is, and in bfloat16."""
    return request.param


def spy(monkeypatch):
    """The kernel's calls from now on: arguments, and the instruction set that it says it ran on."""
    calls, kernel = [], _C_cpu.block_sparse_linear
    monkeypatch.setattr(
        _C_cpu, "block_sparse_linear", lambda **args: calls.append((args, kernel(**args)))
    )
    return calls


@pytest.mark.parametrize("m", [0, 1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 24, 25, 33, 127])
@pytest.mark.parametrize("block", [(16, 32), (32, 32), (64, 16), (16, 16), (32, 6)])
def test_any_number_of_rows(isa, check, m, block):
    check(torch.randn(m, 96), random_weight(128, 96, block), torch.randn(128))


@pytest.mark.parametrize("m", [1, 13, 40])
@pytest.mark.parametrize("block", [(32, 1), (16, 3)])
def test_blocks_of_an_odd_number_of_inputs(isa, m, block):
    assert_exact(torch.randn(m, 96), random_weight(128, 96, block), torch.randn(128))


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (31, 7), (33, 100), (70, 384), (32, 257), (100, 1000)]
)
@pytest.mark.parametrize("m", [1, 6, 40])
def test_packed_dense_of_any_size(isa, check, m, n, k):
    """One block per row: outputs beyond n are padding, and the inputs are cut into chunks inside
    the block."""
    weight = random_weight(n, k, (32, k), density=1)
    check(torch.randn(m, k), weight, torch.randn(n), "relu", torch.randn(m, n), torch.randn(m, n))


@pytest.mark.parametrize("n", [48, 50, 63])
@pytest.mark.parametrize("bn", [16, 64])
def test_last_block_row_sticks_out(isa, check, n, bn):
    check(torch.randn(30, 640), random_weight(n, 640, (bn, 32), 0.9), torch.randn(n))


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 64), (32, 512), (32, 4)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.95])
def test_chunks_of_inputs(isa, check, block, density):
    """Several chunks of inputs, with sums carried from one to the next, at densities that leave
    chunks empty."""
    k = 3072
    check(torch.randn(150, k), random_weight(128, k, block, density), torch.randn(128), "silu")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("n", "block", "density"), [(70, (32, 600), 1), (96, (32, 24), 0.2)])
def test_many_rows(isa, check, torch_threads, threads, n, block, density):
    """Each group of tiles is packed by the thread that needs it, chunk by chunk."""
    torch_threads(threads)
    m, k = 400, 600
    multiplier, residual = torch.randn(m, 2 * n)[:, :n], torch.randn(m, n)
    weight = random_weight(n, k, block, density)
    check(torch.randn(m, k), weight, torch.randn(n), "gelu", multiplier, residual)


def test_more_rows_than_are_packed_at_once(isa, check):
    m, k = 1100, 8192  # more than 4 M words
    check(torch.randn(m, k), random_weight(32, k, (32, 32), 0.1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(isa, check, activation):
    weight, bias = random_weight(64, 64), torch.randn(64)
    x, multiplier, residual = torch.randn(3, 9, 64), torch.randn(3, 9, 64), torch.randn(3, 9, 64)
    check(x, weight, bias, activation)
    check(x, weight, None, activation, multiplier)
    check(x, weight, bias, activation, None, residual)
    check(x, weight, bias, activation, multiplier, residual)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "none"])
def test_activation_accuracy(isa, activation):
    """Value by value, also far out in the tails: 1e-6 relative, and what one rounding of the input
    would change."""
    tiny = torch.logspace(-30, 1, 500)
    x = torch.cat([torch.linspace(-12, 12, 4000), tiny, -tiny])
    weight = random_weight(32, 1, (32, 1), density=1)
    weight.values.fill_(1)
    y = block_sparse_linear(x[:, None], weight, activation=activation)[:, 5]
    x = x.double().numpy()
    truth = oracles.activate(activation, x)
    moved = np.abs(oracles.activate(activation, x * (1 + 2.0**-24)) - truth)
    assert np.all(np.abs(y.numpy() - truth) <= 1e-6 * np.abs(truth) + moved + 1e-37)


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "none"])
def test_activation_accuracy_in_bfloat16(isa, activation):
    """Value by value: half a unit in the last of 8 bits, and the formula's own error."""
    x = torch.cat([torch.linspace(-12, 12, 4000), torch.logspace(-20, 1, 500)]).bfloat16()
    weight = random_weight(32, 1, (32, 1), density=1)
    weight.values.fill_(1)
    y = block_sparse_linear(x[:, None], paired(weight), activation=activation)[:, 5]
    truth = oracles.activate(activation, x.double().numpy())
    assert np.all(np.abs(y.double().numpy() - truth) <= BF16 * np.abs(truth) + 1e-37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_infinity_and_nan_pass_as_in_the_formula(isa, activation, dtype):
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e38, -1e38, 0.0, -0.0], dtype=dtype)
    weight = random_weight(32, 1, (32, 1), density=1)
    weight.values.fill_(1)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    y = block_sparse_linear(x[:, None], weight, activation=activation)[:, 0]
    with np.errstate(all="ignore"):
        truth = oracles.activate(activation, x.double().numpy())
    torch.testing.assert_close(y, torch.from_numpy(truth).to(dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pruned_block_ignores_infinity(isa, dtype):
    weight = random_weight(64, 64, density=1)
    weight.values, weight.indices = weight.values[[0, 2]], weight.indices[[0, 2]]
    weight.indptr = torch.tensor([0, 1, 2], dtype=torch.int32)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    x = torch.randn(4, 64, dtype=dtype)
    clean = block_sparse_linear(x, weight)
    x[:, 32:] = torch.inf
    assert torch.equal(block_sparse_linear(x, weight), clean)


def test_empty_block_rows_and_empty_weight(isa, check):
    weight = random_weight(96, 64, density=1)
    weight.indptr = torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    weight.values, weight.indices = weight.values[:4], weight.indices[:4]
    residual = torch.randn(10, 96)
    check(torch.randn(10, 64), weight, torch.randn(96), "gelu", None, residual)
    empty = random_weight(96, 64, density=0)
    check(torch.randn(10, 64), empty, torch.randn(96), "gelu", None, residual)


def test_no_inputs_at_all(isa):
    bias = torch.randn(32)
    y = block_sparse_linear(torch.randn(3, 0), random_weight(32, 0, (32, 1)), bias)
    assert torch.equal(y, bias.expand(3, 32))


def test_output_is_written_once_and_whole(isa, check, monkeypatch):
    """No cell keeps what the memory held before, and nothing is added to it."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    check(torch.randn(29, 1024), random_weight(100, 1024, (32, 1024), 1), torch.randn(100))
    check(torch.randn(29, 1024), random_weight(96, 1024, (32, 16), 0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("k", "m"), [(257, 3), (90, 17), (64, 1), (100, 33)])
def test_nothing_outside_the_operands_is_read(isa, dtype, k, m):
    """All around each operand lies NaN, which one stray product would carry into the output."""

    def guarded(t):
        t = t.to(dtype)
        around = torch.full((t.numel() + 2 * 4096,), torch.nan, dtype=dtype)
        inside = around[4096 : 4096 + t.numel()].view(t.shape)
        return inside.copy_(t)

    weight = random_weight(70, k, (32, k), density=1)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    weight.values = guarded(weight.values)
    x, bias, residual = guarded(torch.randn(m, k)), guarded(torch.randn(70)), torch.randn(m, 70)
    y = block_sparse_linear(x, weight, bias, "none", None, guarded(residual))
    assert error(y, x, weight, bias, "none", None, residual.to(dtype)) < BF16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [7, 90])
@pytest.mark.parametrize("m", [1, 17])
def test_memory_of_an_earlier_call_does_not_show(isa, dtype, m, k):
    """Behind inputs that end within a step stand zeros, though an earlier call left NaN there; and
    a row of x is followed by NaN."""

    def packed(n, k):
        weight = random_weight(n, k, (32, k), density=1)
        return paired(weight) if dtype == torch.bfloat16 else weight

    nan = torch.full((m, 128), torch.nan, dtype=dtype)
    assert block_sparse_linear(nan, packed(32, 128)).isnan().all()
    x, weight = nan[:, :k], packed(32, k)
    x.copy_(torch.randn(m, k))
    assert error(block_sparse_linear(x, weight), x, weight) < BF16


@pytest.mark.parametrize("view", ["rows apart", "column major", "batch apart", "expanded"])
def test_strided_operands(isa, check, view):
    def cast(t):  # [2, 9, n] -> the same values in another layout
        n = t.shape[2]
        if view == "rows apart":
            wide = torch.full((2, 9, n + 7), torch.nan)
            wide[..., 3 : 3 + n] = t
            return wide[..., 3 : 3 + n]
        if view == "column major":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if view == "batch apart":
            wide = torch.full((2, 11, n), torch.nan)
            wide[:, :9] = t
            return wide[:, :9]
        return t[:, :1].expand(2, 9, n)

    x, multiplier, residual = (cast(torch.randn(2, 9, 64)) for _ in range(3))
    wide_bias = torch.randn(64, 2)[:, 0]
    check(x, random_weight(64, 64), wide_bias, "gelu", multiplier, residual)


def test_operands_each_with_a_stride_of_its_own(isa, check):
    def rows(apart):
        wide = torch.full((18, apart), torch.nan)
        wide[:, 3:67] = torch.randn(18, 64)
        return wide[:, 3:67]

    check(rows(71), random_weight(64, 64), None, "gelu", rows(80), rows(93))


@pytest.mark.parametrize("apart", [64, 71, 72, 1024])
@pytest.mark.parametrize("m", [16, 33, 80])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_rows_of_bfloat16_read_where_they_lie(isa, m, apart, density):
    """A row begins anywhere; what stands between rows is NaN."""
    x = torch.full((m, apart), torch.nan, dtype=torch.bfloat16)[:, :64]
    x.copy_(torch.randn(m, 64))
    weight = paired(random_weight(96, 64, density=density))
    assert error(block_sparse_linear(x, weight), x, weight) < BF16


def test_evenly_spaced_rows_are_not_copied(isa, monkeypatch):
    x = torch.randn(2, 9, 100)[..., :64]
    calls = spy(monkeypatch)
    assert_exact(x, random_weight(64, 64), torch.randn(64))
    assert [(a["x"], a["x_stride"]) for a, _ in calls] == [(x.data_ptr(), 100)]


@pytest.mark.parametrize("density", [0.2, 1.0])
@pytest.mark.parametrize("m", [4, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(isa, torch_threads, m, density, dtype):
    x, weight = torch.randn(m, 512, dtype=dtype), random_weight(512, 512, (32, 32), density)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    results = []
    for threads in (1, 2, 3, 7):
        torch_threads(threads)
        results.append(block_sparse_linear(x, weight))
    assert all(torch.equal(y, results[0]) for y in results)


def test_calls_from_two_python_threads(isa):
    number = cpu.isa_number()
    cases = [
        (torch.randn(200, 256), random_weight(256, 256)),
        (torch.randn(200, 256).bfloat16(), paired(random_weight(256, 256))),
    ]
    expected = [block_sparse_linear(*case) for case in cases]

    def call(i):
        with use_backend("cpu"), cpu.use_isa(cpu.kernels.isa_name(number)):
            return all(torch.equal(block_sparse_linear(*cases[i]), expected[i]) for _ in range(30))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(call, range(2)))


def test_the_instruction_set_asked_for_is_the_one_that_runs(isa, monkeypatch):
    calls = spy(monkeypatch)
    block_sparse_linear(torch.randn(2, 32), random_weight(32, 32))
    block_sparse_linear(torch.randn(2, 32).bfloat16(), paired(random_weight(32, 32)))
    assert [ran for _, ran in calls] == [isa, isa]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [(32, 32), (8, 4), (32, 96)])
def test_reference(dtype, block):
    weight = random_weight(64, 96, block, 0.6, dtype)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    x, bias, multiplier, residual = (
        torch.randn(*s, dtype=dtype) for s in ((2, 5, 96), (64,), (2, 5, 64), (2, 5, 64))
    )
    with use_backend("reference"):
        y = block_sparse_linear(x, weight, bias, "gelu", multiplier, residual)
    assert y.dtype == dtype
    up = [t.double() for t in (x, bias, multiplier, residual)]
    weight.values = weight.values.double()
    truth = oracles.block_sparse_linear(up[0], weight, up[1], "gelu", up[2], up[3])
    assert (
        oracles.relative_error(y.double(), truth)
        < oracles.TOLERANCE[str(dtype).removeprefix("torch.")]
    )


def test_gradients_are_those_of_the_formula():
    weight = random_weight(64, 64, (32, 32), 0.6, torch.float64)
    x, bias, multiplier, residual = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True)
        for s in ((3, 64), (64,), (3, 64), (3, 64))
    )
    weight.values.requires_grad_()

    def call(x, values, bias, multiplier, residual):
        packed = type(weight)(**{**vars(weight), "values": values})
        return block_sparse_linear(x, packed, bias, "gelu", multiplier, residual)

    inputs = (x, weight.values, bias, multiplier, residual)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


def test_gradients_flow_through_the_kernel(isa):
    weight, x = random_weight(64, 64), torch.randn(3, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(block_sparse_linear(x, weight, activation="silu").sum(), x)
    with use_backend("reference"):
        (truth,) = torch.autograd.grad(block_sparse_linear(x, weight, activation="silu").sum(), x)
    torch.testing.assert_close(grad, truth)
