"""Attention against the float64 formula: every instruction set, uneven heads, masks of every
kind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import oracles
from support.models import opcheck

from ops.attention_check import (
    ROUNDED_ONCE,
    ROUNDING,
    assert_exact,
    guarded,
    qkv,
    tolerance,
    truth_of,
)
from secateurs import _C_cpu
from secateurs.errors import BackendError, OperandError
from secateurs.ops import attention, explain_choice, use_backend
from secateurs.ops._backends import cpu
from secateurs.plan.attention_rules import Local, Strided, layout


@pytest.mark.parametrize(
    ("tq", "tk"), [(1, 1), (1, 300), (7, 7), (16, 129), (17, 128), (33, 5), (300, 300)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(isa, dtype, tq, tk, causal):
    assert_exact(*map(guarded, qkv(1, 2, 2, tq, tk, dtype=dtype)), causal=causal)


@pytest.mark.parametrize("d", [1, 8, 24, 31, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("tq", [2, 40])
def test_head_dims(isa, dtype, tq, d):
    assert_exact(*map(guarded, qkv(1, 2, 2, tq, 50, d, dtype)))


@pytest.mark.parametrize("scale", [0.7, -0.3, 0.0])
def test_explicit_scale(isa, dtype, scale):
    assert_exact(*qkv(dtype=dtype), scale=scale)


@pytest.mark.parametrize("kv_of", [None, [0, 0, 0, 1], [1, 0, 2, 1], [2, 2, 2, 2]])
def test_uneven_heads(isa, dtype, kv_of):
    """Pruning leaves any number of query heads on a key/value head, in any order."""
    hkv = 2 if kv_of is None else 3
    kv_of = None if kv_of is None else torch.tensor(kv_of, dtype=torch.int32)
    assert_exact(*qkv(2, 4, hkv, 20, 20, dtype=dtype), kv_of=kv_of, causal=True)


@pytest.mark.parametrize("d", [16, 33, 40, 64, 160])
@pytest.mark.parametrize(("tq", "heads"), [(1, 3), (1, 4), (1, 9), (2, 3)])
def test_few_queries_read_keys_together(isa, dtype, tq, heads, d):
    """Several heads on a key/value head, more keys than a share, some hidden, a mask each."""
    q, k, v = map(guarded, qkv(2, heads + 1, 2, tq, 700, d, dtype))
    kv_of = torch.tensor([0] * (heads // 2) + [1] + [0] * (heads - heads // 2), dtype=torch.int32)
    seen = torch.rand(2, 700) < 0.8
    mask = guarded(torch.randn(2, heads + 1, tq, 700))
    assert_exact(q, k, v, kv_of=kv_of)
    assert_exact(q, k, v, kv_of=kv_of, key_mask=seen, mask=mask, causal=True)


@pytest.mark.parametrize(
    ("tq", "tk", "d"),
    [(3, 3, 1), (7, 8, 31), (16, 129, 32), (33, 5, 33), (40, 300, 64), (2, 9, 32)],
)
@pytest.mark.parametrize("masks", [False, True])
def test_short_products(isa, tq, tk, d, masks):
    """Elements are rounded where the instruction set multiplies pairs of bfloat16; where they are
    such numbers, weights alone are."""
    long = tuple(map(guarded, qkv(2, 3, 3, tq, tk, d)))
    short = tuple(guarded(x.bfloat16().float()) for x in long)
    seen = torch.rand(2, tk) < 0.8
    named = {"key_mask": seen, "causal": True, "mask": torch.randn(tq, tk)} if masks else {}
    y = attention(*short, **named, short_products=True)
    assert oracles.relative_error(y, truth_of(*short, **named)) < ROUNDING
    rounds = isa not in ROUNDED_ONCE and tq > 2  # few queries are read as they are
    assert torch.equal(y, attention(*long, **named, short_products=True)) == rounds
    assert torch.equal(y, attention(*short, **named)) != rounds


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tq", [150, 2])
def test_padding(isa, dtype, tq, causal):
    """Left, right, scattered, and a sequence without any key."""
    q, k, v = qkv(4, 2, 2, tq, 150, dtype=dtype)
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
@pytest.mark.parametrize("kind", ["bool", "float", "both", "own dtype"])
def test_explicit_mask(isa, dtype, shape, kind):
    mask = torch.rand(shape) < 0.7
    additive = torch.randn(shape)
    mask = {
        "bool": mask,
        "float": additive,
        "both": additive.masked_fill(~mask, -torch.inf),
        "own dtype": additive.to(dtype),
    }[kind]
    padding = torch.rand(2, 140) < 0.8
    assert_exact(*qkv(2, 3, 3, 20, 140, dtype=dtype), mask=mask)
    assert_exact(*qkv(2, 3, 3, 20, 140, dtype=dtype), mask=mask, key_mask=padding, causal=True)


@pytest.mark.parametrize("tq", [2, 20])
def test_masks_are_read_where_they_are(isa, dtype, tq):
    """Rows of a mask end in the middle of a vector, at the end of its memory."""
    mask = guarded(torch.randn(2, 3, tq, 37))
    assert_exact(*qkv(2, 3, 3, tq, 37, dtype=dtype), mask=mask)


def test_queries_that_see_nothing_yield_zeros(isa, dtype):
    q, k, v = qkv(1, 2, 2, 20, 12, dtype=dtype)
    y = attention(q, k, v, causal=True)  # the first 8 queries come before the first key
    assert not y[:, :8].any()
    assert_exact(q, k, v, causal=True)
    mask = torch.ones(20, 12, dtype=torch.bool)
    mask[3] = False
    assert not attention(q, k, v, mask=mask)[:, 3].any()
    assert_exact(q, k, v, mask=mask)


def test_no_keys_heads_or_queries(isa, dtype):
    q, k, v = qkv(2, 3, 3, 5, 0, dtype=dtype)
    assert torch.equal(attention(q, k, v), torch.zeros(2, 5, 3, 16, dtype=dtype))
    assert attention(*qkv(2, 0, 0, 5, 5, dtype=dtype)).shape == (2, 5, 0, 16)
    assert attention(*qkv(2, 3, 3, 0, 5, dtype=dtype)).shape == (2, 0, 3, 16)


@pytest.mark.parametrize("tq", [2, 140])
def test_views_of_a_fused_projection(isa, dtype, tq):
    """q, k and v as slices of `[B, T, (Hq + 2 Hkv) D]`, rows a whole number of pages apart."""
    joint = guarded(torch.randn(2, 140, 8, 128).to(dtype))
    q, k, v = (t.transpose(1, 2) for t in joint.split([4, 2, 2], dim=2))
    q = q[:, :, :tq]
    assert_exact(q, k, v)
    assert_exact(q, k, v, causal=True)


def test_last_dimension_apart(isa, dtype):
    q, k, v = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in qkv(dtype=dtype))
    assert_exact(q, k, v)


def test_large_scores_of_a_negative_scale_do_not_overflow(isa, dtype):
    q, k, v = qkv(1, 1, 1, 40, 300, dtype=dtype)
    y = attention(8 * q, 8 * k, v, scale=-0.25)
    same = attention(-8 * q, 8 * k, v, scale=0.25).double().numpy()
    assert oracles.relative_error(y, same) < max(1e-3, tolerance(dtype))


@pytest.mark.parametrize("tq", [2, 40])
def test_large_scores_do_not_overflow(isa, dtype, tq):
    """Scores of thousands; a score's own rounding, half a unit in its last place, moves its weight
    as much."""
    q, k, v = qkv(1, 1, 1, tq, 300, dtype=dtype)
    q, k = q * 30, k * 30
    rounding = float((q.float() @ k.float().transpose(2, 3)).abs().max()) * 16**-0.5 * 2**-24
    truth = truth_of(q, k, v)
    assert oracles.relative_error(attention(q, k, v).float(), truth) < tolerance(dtype) + rounding


@pytest.mark.parametrize("largest", [100, 1500, 2900])
def test_shares_of_keys_far_apart(isa, dtype, largest):
    """One key, in any share, has all the weight; relative to other shares it would overflow."""
    q, k, v = qkv(1, 1, 1, 2, 3000, dtype=dtype)
    q, k = torch.ones_like(q), -torch.ones_like(k)
    k[:, :, largest] = 100
    assert torch.equal(attention(q, k, v)[:, :, 0], v[:, 0, largest, None].expand(1, 2, 16))


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("tq", [2, 40])
def test_memory_of_an_earlier_call_does_not_show(isa, dtype, tq, block):
    """That call leaves NaN wherever this one works; blocks in part, keys hidden and missing."""
    attention(*(torch.full_like(t, torch.nan) for t in qkv(1, 1, 1, 300, 600, 48, dtype)))
    attention(*(torch.full_like(t, torch.nan) for t in qkv(1, 1, 1, 2, 600, 48, dtype)))
    q, k, v = qkv(1, 1, 1, tq, 75, 40, dtype)
    seen = torch.arange(75)[None] % 3 > 0
    pattern = layout(Local(20) | Strided(5), tq, 75, block=block)
    assert_exact(q, k, v, key_mask=seen, pattern=pattern)


@pytest.mark.parametrize("tq", [2, 40])
def test_tiny_scores_weigh_all_keys_alike(isa, dtype, tq):
    q, k, v = qkv(1, 1, 1, tq, 300, dtype=dtype)
    assert_exact(q * 1e-20, k * 1e-20, v)


@pytest.mark.parametrize("tq", [2, 40])
def test_rising_scores_rescale_what_was_summed(isa, dtype, tq):
    """Each block of keys holds a larger score than all before it."""
    q, k, v = qkv(1, 1, 1, tq, 500, dtype=dtype)
    k = q[:, :, :1] * torch.linspace(0, 3, 500, dtype=dtype)[:, None]
    assert_exact(q, k, v)


@pytest.mark.parametrize("tq", [2, 20])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_pass_to_those_who_attend_them(isa, dtype, tq, bad):
    q, k, v = qkv(1, 2, 2, tq, 200, dtype=dtype)
    k[0, 1, 150, 3] = torch.nan
    v[0, 0, 7, 5] = bad
    q[0, 0, 1, 0] = torch.nan
    y = attention(q, k, v)
    assert y[0, :, 1].isnan().all()
    assert y[0, 1, 0].isnan().all()
    others = y[0, [i for i in range(tq) if i != 1], 0]
    assert not others[:, [d for d in range(16) if d != 5]].isnan().any()
    assert (others[:, 5].isnan() if bad != bad else others[:, 5] == bad).all()


def test_output_is_written_once_and_whole(isa, dtype, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    assert_exact(*qkv(2, 3, 3, 37, 37, 24, dtype))
    assert_exact(*qkv(2, 3, 3, 2, 37, 24, dtype))


@pytest.mark.parametrize(("tq", "tk"), [(200, 200), (2, 1500), (40, 9000)])
def test_same_bits_for_any_number_of_threads(isa, dtype, torch_threads, tq, tk):
    q, k, v = qkv(2, 3, 3, tq, tk, 32, dtype)
    results = []
    for threads in (1, 2, 5):
        torch_threads(threads)
        results.append(attention(q, k, v, causal=True))
    assert all(torch.equal(y, results[0]) for y in results)


def test_calls_from_several_threads_do_not_disturb_each_other(isa, dtype):
    calls = [qkv(1, 2, 2, tq, tk, d, dtype) for tq, tk, d in [(40, 70, 16), (2, 700, 32)]] * 3
    expected = [attention(*call) for call in calls]
    number = cpu.isa()

    def run(call):
        with use_backend("cpu"), cpu.use_isa(number), torch.inference_mode():
            return [attention(*call) for _ in range(20)]

    with ThreadPoolExecutor(3) as pool:
        for got, want in zip(pool.map(run, calls), expected, strict=True):
            assert all(torch.equal(y, want) for y in got)


@pytest.mark.parametrize(("tq", "tk"), [(40, 9000), (2, 9000)])
def test_more_keys_than_stay_packed(isa, dtype, tq, tk):
    q, k, v = qkv(1, 2, 1, tq, tk, 64, dtype)
    assert_exact(q, k, v, causal=True)


def test_the_instruction_set_asked_for_is_the_one_that_runs(isa, dtype, monkeypatch):
    ran, kernel = [], _C_cpu.attention
    monkeypatch.setattr(_C_cpu, "attention", lambda **args: ran.append(kernel(**args)))
    attention(*qkv(dtype=dtype))
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
    assert choice.refusals["cpu"] == "takes float32 and bfloat16, got torch.float64"
    with use_backend("cpu"), pytest.raises(BackendError, match="takes float32 and bf"):
        attention(*args)


@pytest.mark.parametrize("masked", [False, True])
def test_torch_accepts_the_operator(masked):
    q, k, v = (t.requires_grad_() for t in qkv())
    key_mask = torch.rand(2, 9) < 0.7 if masked else None
    args = (q, k, v, None, key_mask, None, True, 0.25, None, None, None, None, False, None)
    opcheck(torch.ops.secateurs.attention.default, args)


def test_compiles_without_graph_breaks():
    q, k, v = qkv()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(q):
        return attention(attention(q, k, v).transpose(1, 2), k, v, causal=True)

    assert torch.equal(twice(q), attention(attention(q, k, v).transpose(1, 2), k, v, causal=True))
