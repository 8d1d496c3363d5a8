"""add + norm against the float64 formula: both norms, every instruction set, lengths that break
kernels."""

from __future__ import annotations

import pytest
import torch
from support import oracles
from support.models import opcheck

from secateurs import _C_cpu
from secateurs.errors import BackendError, OperandError
from secateurs.ops import add_norm, explain_choice, sum_and_norm, use_backend

DTYPES = (torch.float32, torch.bfloat16)
KINDS = {"layer": (True, False), "rms": (False, True), "biased rms": (True, True)}


def operands(shape, dtype=torch.float32, bias=True, residual=True):
    """x, residual, weight, bias, with a mean that is not near zero."""
    d = shape[-1]
    x, r = (torch.randn(*shape, dtype=torch.float64) + offset for offset in (1.5, -0.3))
    w, b = torch.randn(d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    parts = (x, r if residual else None, w, b if bias else None)
    return tuple(None if part is None else part.to(dtype) for part in parts)


def assert_exact(args, eps=1e-5, rms=False):
    """Norm and sum, of the norm alone and with the sum beside it."""
    dtype = args[0].dtype
    exact = [None if a is None else a.double() for a in args]
    total, truth = oracles.add_norm(*exact, eps, rms)
    tolerance = oracles.TOLERANCE[str(dtype).removeprefix("torch.")]
    y = add_norm(*args, eps, rms)
    kept, beside = sum_and_norm(*args, eps, rms)
    assert y.dtype == kept.dtype == dtype
    assert torch.equal(y, beside)
    assert oracles.relative_error(y.double(), truth) < tolerance
    assert oracles.relative_error(kept.double(), total) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 3, 4, 7, 15, 16, 17, 63, 64, 65, 127, 384, 1000])
def test_any_length(isa, d, kind, dtype):
    bias, rms = KINDS[kind]
    for residual in (True, False):
        assert_exact(operands((5, d), dtype, bias, residual), rms=rms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 2, 300])
def test_any_number_of_rows(isa, torch_threads, m, dtype):
    for threads in (1, 2, 3):
        torch_threads(threads)
        assert_exact(operands((m, 96), dtype))


@pytest.mark.parametrize("rms", [False, True])
def test_large_mean_leaves_the_variance_its_digits(isa, rms):
    """Where the mean is 4096 deviations away, E[x^2] - E[x]^2 has no digit left; only the rounding
    of the mean (2^-12 deviations) may show."""
    x, _, w, b = operands((4, 300), residual=False)
    x = x + 4096
    _, truth = oracles.add_norm(x.double(), None, w.double(), b.double(), 1e-5, rms)
    y = add_norm(x, None, w, b, 1e-5, rms)
    assert oracles.relative_error(y.double(), truth) < 2**-11


def test_the_sum_is_not_rounded_before_its_norm(isa):
    """In bfloat16, 256 + 1 rounds to 256: a norm of the rounded sum would be one of a constant."""
    x = torch.full((2, 64), 256.0, dtype=torch.bfloat16)
    residual = (torch.arange(64) % 2).to(torch.bfloat16).expand(2, 64)
    one = torch.ones(64, dtype=torch.bfloat16)
    y = add_norm(x, residual, one, eps=0.0)
    assert torch.equal(y, (2 * residual - 1))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0])
def test_eps_is_under_the_root(isa, eps):
    x, r, w, b = operands((3, 40))
    assert_exact((x * 1e-2, r * 1e-2, w, b), eps)


def test_constant_row_gives_the_bias(isa):
    b = torch.randn(48)
    y = add_norm(torch.full((3, 48), 2.5), None, torch.randn(48), b)
    assert torch.equal(y, b.expand(3, 48))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_stay_in_their_row(isa, value):
    x, r, w, b = operands((3, 50))
    clean = add_norm(x, r, w, b)
    x[1, 49] = value
    y = add_norm(x, r, w, b)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("view", ["rows apart", "column major", "expanded"])
def test_strided_operands(isa, view):
    def cast(t):
        if view == "rows apart":
            wide = torch.full((2, 9, 57), torch.nan)
            wide[..., 3:53] = t
            return wide[..., 3:53]
        if view == "column major":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        return t[:, :1].expand(2, 9, 50)

    x, r, _, _ = operands((2, 9, 50))
    w, b = torch.randn(50, 2)[:, 0], torch.randn(50, 2)[:, 1]
    assert_exact((cast(x), cast(r), w, b))
    assert_exact((cast(x), r, w, b))
    assert_exact((x, cast(r), w, b))


def test_output_is_written_once_and_whole(isa, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    assert_exact(operands((7, 53)))


def test_same_bits_for_any_number_of_threads(isa, torch_threads):
    args = operands((200, 130))
    results = []
    for threads in (1, 2, 3, 7):
        torch_threads(threads)
        results.append(add_norm(*args))
    assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_instruction_set_and_dtype_asked_for_are_those_that_run(isa, dtype, monkeypatch):
    calls, kernel = [], _C_cpu.add_norm
    monkeypatch.setattr(_C_cpu, "add_norm", lambda **a: calls.append((a["dtype"], kernel(**a))))
    add_norm(*operands((2, 8), dtype))
    assert calls == [(int(dtype == torch.bfloat16), isa)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rms", [False, True])
def test_reference(dtype, rms):
    with use_backend("reference"):
        assert_exact(operands((2, 3, 70), dtype), 1e-6, rms)
        assert_exact(operands((4, 70), dtype, bias=False, residual=False), 1e-6, rms)


@pytest.mark.parametrize("rms", [False, True])
def test_gradients_are_those_of_the_formula(rms):
    args = [t.requires_grad_() for t in operands((3, 12), torch.float64)]
    assert torch.autograd.gradcheck(lambda *a: add_norm(*a, 1e-5, rms), args)
    assert torch.autograd.gradcheck(lambda *a: sum_and_norm(*a, 1e-5, rms), args)


def test_misfits_are_refused_in_words():
    x, r, w, b = operands((3, 8))
    cases = [
        (dict(residual=r[:2]), r"residual of shape \(3, 8\), got \(2, 8\)"),
        (dict(weight=w[:7]), r"weight of shape \(8,\), got \(7,\)"),
        (dict(bias=b[None]), r"bias of shape \(8,\), got \(1, 8\)"),
        (dict(bias=b.double()), r"bias in the dtype of x, torch.float32, got torch.float64"),
        (dict(residual=r.to("meta")), "residual on cpu like x, got it on meta"),
        (dict(x=torch.tensor(1.0)), r"x \[\.\.\., D\]"),
    ]
    for change, message in cases:
        with pytest.raises(OperandError, match=message):
            add_norm(**{"x": x, "residual": r, "weight": w, "bias": b, **change})


def test_cpu_backend_refuses_in_words_and_never_falls_back():
    args = operands((3, 8), torch.float16)
    choice = explain_choice(add_norm, *args)
    assert choice.backend == "reference"
    assert "takes float32 and bfloat16, got torch.float16" in choice.refusals["cpu"]
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32 and bfloat16"):
        add_norm(*args)


@pytest.mark.parametrize("keep_sum", [False, True])
def test_torch_accepts_the_operator(keep_sum):
    x, r, w, b = operands((3, 8))
    args = (x.requires_grad_(), r, w.requires_grad_(), b, 1e-5, False, keep_sum)
    opcheck(torch.ops.secateurs.add_norm.default, args)


def test_compiles_without_graph_breaks():
    x, r, w, b = operands((3, 8))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(x):
        total, y = sum_and_norm(x, r, w, b)
        return add_norm(y, total, w)

    total, y = sum_and_norm(x, r, w, b)
    assert torch.equal(twice(x), add_norm(y, total, w))
