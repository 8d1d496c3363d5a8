"""Attention against the float64 formula: every instruction set, uneven heads, masks of every
kind."""

from __future__ import annotations

import oracles
import pytest
import torch

from secateurs import _C_cpu
from secateurs.errors import BackendError, OperandError
from secateurs.ops import attention, explain_choice, use_backend


def qkv(b=2, hq=3, hkv=3, tq=9, tk=9, d=16, dtype=torch.float32):
    return torch.randn(b, hq, tq, d, dtype=dtype), *torch.randn(2, b, hkv, tk, d, dtype=dtype)


def assert_exact(*args, **kwargs):
    y = attention(*args, **kwargs)
    assert y.is_contiguous()
    truth = oracles.attention(*args, **kwargs)
    assert oracles.relative_error(y, truth) < oracles.TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("tq", "tk"), [(1, 1), (1, 300), (7, 7), (16, 129), (17, 128), (33, 5), (300, 300)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(isa, tq, tk, causal):
    assert_exact(*qkv(1, 2, 2, tq, tk), causal=causal)


@pytest.mark.parametrize("d", [1, 8, 24, 31, 64, 80, 128, 256])
def test_head_dims(isa, d):
    assert_exact(*qkv(1, 2, 2, 40, 50, d))


def test_explicit_scale(isa):
    assert_exact(*qkv(), scale=0.7)


@pytest.mark.parametrize("kv_of", [None, [0, 0, 0, 1], [1, 0, 2, 1], [2, 2, 2, 2]])
def test_uneven_heads(isa, kv_of):
    """Pruning leaves any number of query heads on a key/value head, in any order."""
    hkv = 2 if kv_of is None else 3
    kv_of = None if kv_of is None else torch.tensor(kv_of, dtype=torch.int32)
    assert_exact(*qkv(2, 4, hkv, 20, 20), kv_of=kv_of, causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_padding(isa, causal):
    """Left, right, scattered, and a sequence without any key."""
    q, k, v = qkv(4, 2, 2, 150, 150)
    mask = torch.ones(4, 150, dtype=torch.bool)
    mask[0, 140:] = False
    mask[1, :135] = False
    mask[2] = torch.rand(150) < 0.4
    mask[3] = False
    k[~mask[:, None].expand(4, 2, 150)] = torch.nan  # padding may hold anything
    v[~mask[:, None].expand(4, 2, 150)] = torch.nan
    assert_exact(q, k, v, key_mask=mask, causal=causal)
    assert not attention(q, k, v, key_mask=mask)[3].any()


@pytest.mark.parametrize(
    "shape", [(2, 3, 20, 140), (2, 1, 20, 140), (20, 140), (2, 1, 1, 140), (3, 20, 1), ()]
)
@pytest.mark.parametrize("kind", ["bool", "float", "both"])
def test_explicit_mask(isa, shape, kind):
    mask = torch.rand(shape) < 0.7
    additive = torch.randn(shape)
    mask = (
        mask
        if kind == "bool"
        else additive
        if kind == "float"
        else additive.masked_fill(~mask, -torch.inf)
    )
    padding = torch.rand(2, 140) < 0.8
    assert_exact(*qkv(2, 3, 3, 20, 140), mask=mask)
    assert_exact(*qkv(2, 3, 3, 20, 140), mask=mask, key_mask=padding, causal=True)


def test_queries_that_see_nothing_yield_zeros(isa):
    q, k, v = qkv(1, 2, 2, 20, 12)
    y = attention(q, k, v, causal=True)  # the first 8 queries come before the first key
    assert not y[:, :8].any()
    assert_exact(q, k, v, causal=True)
    mask = torch.ones(20, 12, dtype=torch.bool)
    mask[3] = False
    assert not attention(q, k, v, mask=mask)[:, 3].any()
    assert_exact(q, k, v, mask=mask)


def test_no_keys_heads_or_queries(isa):
    q, k, v = qkv(2, 3, 3, 5, 0)
    assert torch.equal(attention(q, k, v), torch.zeros(2, 5, 3, 16))
    assert attention(*qkv(2, 0, 0, 5, 5)).shape == (2, 5, 0, 16)
    assert attention(*qkv(2, 3, 3, 0, 5)).shape == (2, 0, 3, 16)


def test_views_of_a_fused_projection(isa):
    """q, k and v as slices of `[B, T, (Hq + 2 Hkv) D]`, rows a whole number of pages apart."""
    joint = torch.randn(2, 140, 8, 128)
    q, k, v = (t.transpose(1, 2) for t in joint.split([4, 2, 2], dim=2))
    assert_exact(q, k, v)
    assert_exact(q, k, v, causal=True)


def test_last_dimension_apart(isa):
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in qkv())
    assert_exact(q, k, v)


def test_large_scores_do_not_overflow(isa):
    """Scores of thousands; a score's own rounding, half a unit in its last place, moves its weight
    as much."""
    q, k, v = qkv(1, 1, 1, 40, 300)
    q, k = q * 30, k * 30
    rounding = float((q @ k.transpose(2, 3)).abs().max()) * 16**-0.5 * 2**-24
    truth = oracles.attention(q, k, v)
    assert (
        oracles.relative_error(attention(q, k, v), truth) < oracles.TOLERANCE["float32"] + rounding
    )


def test_tiny_scores_weigh_all_keys_alike(isa):
    q, k, v = qkv(1, 1, 1, 40, 300)
    assert_exact(q * 1e-20, k * 1e-20, v)


def test_rising_scores_rescale_what_was_summed(isa):
    """Each block of keys holds a larger score than all before it."""
    q, k, v = qkv(1, 1, 1, 40, 500)
    k = q[:, :, :1] * torch.linspace(0, 3, 500)[:, None]
    assert_exact(q, k, v)


def test_nan_passes_to_those_who_attend_it(isa):
    q, k, v = qkv(1, 2, 2, 20, 200)
    k[0, 1, 150, 3] = torch.nan
    q[0, 0, 4, 0] = torch.nan
    y = attention(q, k, v)
    assert y[0, :, 1].isnan().all()
    assert y[0, 4, 0].isnan().all()
    assert not y[0, [0, 1, 2, 3, *range(5, 20)], 0].isnan().any()


def test_output_is_written_once_and_whole(isa, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    assert_exact(*qkv(2, 3, 3, 37, 37, 24))


def test_same_bits_for_any_number_of_threads(isa, torch_threads):
    q, k, v = qkv(2, 3, 3, 200, 200, 32)
    results = []
    for threads in (1, 2, 5):
        torch_threads(threads)
        results.append(attention(q, k, v, causal=True))
    assert all(torch.equal(y, results[0]) for y in results)


def test_the_instruction_set_asked_for_is_the_one_that_runs(isa, monkeypatch):
    ran, kernel = [], _C_cpu.attention
    monkeypatch.setattr(_C_cpu, "attention", lambda *args: ran.append(kernel(*args)))
    attention(*qkv())
    assert ran == [isa]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_reference(dtype, causal):
    q, k, v = qkv(2, 4, 2, 9, 12, dtype=dtype)
    mask = torch.rand(2, 12) < 0.7
    kv_of = torch.tensor([1, 1, 0, 1], dtype=torch.int32)
    with use_backend("reference"):
        y = attention(q, k, v, kv_of=kv_of, key_mask=mask, causal=causal)
    truth = oracles.attention(
        *(t.double() for t in (q, k, v)), kv_of=kv_of, key_mask=mask, causal=causal
    )
    assert y.dtype == dtype
    assert (
        oracles.relative_error(y.double(), truth)
        < oracles.TOLERANCE[str(dtype).removeprefix("torch.")]
    )


def test_gradients_are_those_of_the_formula():
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 1, 4, 3, 4, torch.float64))
    mask = torch.tensor([[True, False, True]])  # causal: the first query sees nothing

    def call(q, k, v):
        return attention(q, k, v, key_mask=mask, causal=True)

    assert torch.autograd.gradcheck(call, (q, k, v), fast_mode=True)


def test_gradients_flow_through_the_kernel(isa):
    q, k, v = (t.requires_grad_() for t in qkv())
    grads = torch.autograd.grad(attention(q, k, v, causal=True).square().sum(), (q, k, v))
    with use_backend("reference"):
        truth = torch.autograd.grad(attention(q, k, v, causal=True).square().sum(), (q, k, v))
    torch.testing.assert_close(grads, truth)


def test_misfits_are_refused_in_words():
    q, k, v = qkv(2, 4, 2)
    cases = [
        (
            dict(k=k[:, :, :5]),
            r"k and v of shape \(2, 'Hkv', 'Tk', 16\) to go with q, got \(2, 2, 5, 16\)",
        ),
        (dict(q=q[..., :8]), "to go with q"),
        (dict(q=q[:, :3]), "expected kv_of, since 3 query heads do not divide among 2"),
        (dict(kv_of=torch.zeros(3, dtype=torch.int32)), r"kv_of int32 of shape \(4,\)"),
        (dict(kv_of=torch.zeros(4, dtype=torch.int64)), "got torch.int64"),
        (dict(key_mask=torch.ones(2, 8, dtype=torch.bool)), r"key_mask bool of shape \(2, 9\)"),
        (dict(key_mask=torch.ones(2, 9)), "got torch.float32"),
        (
            dict(mask=torch.ones(3, 9, 9, dtype=torch.bool)),
            r"broadcastable to \(2, 4, 9, 9\), got \(3, 9, 9\)",
        ),
        (
            dict(mask=torch.ones(9, 9, dtype=torch.int64)),
            "mask of bool or torch.float32, got torch.int64",
        ),
        (dict(v=v.double()), "k and v in the dtype of q, torch.float32"),
        (
            dict(key_mask=torch.ones(2, 9, dtype=torch.bool, device="meta")),
            "on cpu like q, got one on meta",
        ),
        (dict(q=q[0]), "got 3, 4, 4 dims"),
    ]
    for change, message in cases:
        with pytest.raises(OperandError, match=message):
            attention(**{"q": q, "k": k, "v": v, **change})


@pytest.mark.parametrize("bad", [-1, 2])
def test_head_map_out_of_range_is_refused(isa, bad):
    q, k, v = qkv(2, 3, 2)
    with pytest.raises(OperandError, match=f"one of 2 key/value heads, got {bad} for head 1"):
        attention(q, k, v, kv_of=torch.tensor([0, bad, 1], dtype=torch.int32))


def test_cpu_backend_refuses_in_words_and_never_falls_back():
    args = qkv(dtype=torch.float64)
    choice = explain_choice(attention, *args, causal=True)
    assert choice.backend == "reference"
    assert choice.refusals["cpu"] == "takes float32, got torch.float64"
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32, got torch"):
        attention(*args)


@pytest.mark.parametrize("masked", [False, True])
def test_torch_accepts_the_operator(masked):
    q, k, v = (t.requires_grad_() for t in qkv())
    key_mask = torch.rand(2, 9) < 0.7 if masked else None
    args = (q, k, v, None, key_mask, None, True, 0.25, None, None, None, None)
    torch.library.opcheck(torch.ops.secateurs.attention.default, args)


def test_compiles_without_graph_breaks():
    q, k, v = qkv()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(q):
        return attention(attention(q, k, v).transpose(1, 2), k, v, causal=True)

    assert torch.equal(twice(q), attention(attention(q, k, v).transpose(1, 2), k, v, causal=True))
