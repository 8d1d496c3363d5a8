"""A whole encoder layer against the float64 formula, and against the same kernels called one by
one."""

from __future__ import annotations

import sys
import threading
from contextvars import copy_context
from types import SimpleNamespace

import pytest
import torch
from support import oracles
from support.models import opcheck

from ops.conftest import paired, random_weight
from secateurs.errors import BackendError, OperandError
from secateurs.ops import (
    ACTIVATIONS,
    add_norm,
    attention,
    block_sparse_linear,
    encoder_layer,
    encoder_layers,
    explain_choice,
    prepare_encoder_layer,
    use_backend,
)

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


def product(n, k, dtype, block=None, density=1.0, bias=True, activation="none"):
    weight = random_weight(n, k, block or (32, k), density, dtype)
    weight = paired(weight) if dtype == torch.bfloat16 else weight
    weight.bias = torch.randn(n).to(dtype) if bias else None
    weight.activation = activation
    return weight


def layer(
    d=48,
    heads=3,
    kv_heads=3,
    dim=16,
    neurons=80,
    dtype=torch.float32,
    *,
    block=None,
    density=1.0,
    bias=True,
    activation="gelu",
    kv_of=None,
):
    """What `encoder_layer` takes behind x."""
    make = lambda n, k, **more: product(n, k, dtype, block, density, bias, **more)  # noqa: E731

    def norm(eps):
        shift = torch.randn(d).to(dtype) if bias else None
        return SimpleNamespace(weight=(1 + torch.rand(d)).to(dtype), bias=shift, eps=eps)

    attention = SimpleNamespace(
        qkv=make((heads + 2 * kv_heads) * dim, d),
        output=make(d, heads * dim),
        heads=heads,
        kv_heads=kv_heads,
        kv_of=kv_of,
    )
    ffn = SimpleNamespace(up=make(neurons, d, activation=activation), down=make(d, neurons))
    return [attention, norm(1e-5), ffn, norm(0.1)]


def tokens(batch, length, d=48, dtype=torch.float32):
    return torch.randn(batch, length, d).to(dtype)


def one_by_one(x, part, attention_norm, ffn, ffn_norm, key_mask=None):
    """The layer by the operations it is made of."""

    def norm(x, p):
        return add_norm(x, None, p.weight, p.bias, p.eps)

    if part is not None:
        joint = block_sparse_linear(x, part.qkv, part.qkv.bias)
        joint = joint.unflatten(-1, (part.heads + 2 * part.kv_heads, -1)).transpose(1, 2)
        q, k, v = joint.split([part.heads, part.kv_heads, part.kv_heads], dim=1)
        context = attention(q, k, v, kv_of=part.kv_of, key_mask=key_mask).flatten(2)
        x = block_sparse_linear(context, part.output, part.output.bias, residual=x)
    x = norm(x, attention_norm)
    if ffn is not None:
        h = block_sparse_linear(x, ffn.up, ffn.up.bias, ffn.up.activation)
        x = block_sparse_linear(h, ffn.down, ffn.down.bias, residual=x)
    return norm(x, ffn_norm)


def assert_exact(x, parts, key_mask=None):
    y = encoder_layer(x, *parts, key_mask)
    assert y.dtype == x.dtype
    assert y.is_contiguous()
    truth = oracles.encoder_layer(x, *parts, key_mask)
    tolerance = 2 * oracles.TOLERANCE[str(x.dtype).removeprefix("torch.")]  # a chain of seven
    assert oracles.relative_error(y, truth) < tolerance
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (3, 0), (1, 1), (2, 7), (1, 33), (3, 64)])
def test_any_number_of_rows(isa, dtype, batch, length):
    assert_exact(tokens(batch, length, dtype=dtype), layer(dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 1, "kv_heads": 1, "dim": 32},
        {"heads": 4, "kv_heads": 2},
        {"heads": 3, "kv_heads": 2, "kv_of": torch.tensor([1, 0, 1], dtype=torch.int32)},
        {"d": 64, "heads": 2, "kv_heads": 2, "neurons": 33},
        {"neurons": 1},
        {"block": (16, 16), "density": 0.4},
        {"block": (16, 16), "density": 0.0},
        {"bias": False},
    ],
    ids=str,
)
def test_any_layer(isa, dtype, sizes):
    parts = layer(dtype=dtype, **sizes)
    assert_exact(tokens(2, 9, sizes.get("d", 48), dtype), parts)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(isa, activation):
    assert_exact(tokens(2, 5), layer(activation=activation))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("missing", [(0,), (2,), (0, 2)], ids=["attention", "ffn", "both"])
def test_removed_sub_layers(isa, dtype, missing):
    parts = layer(dtype=dtype)
    for i in missing:
        parts[i] = None
    assert_exact(tokens(2, 9, dtype=dtype), parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding(isa, dtype):
    """Also behind the sequences that go through the layer together, and what stands in a token that
    is hidden reaches no other."""
    parts = layer(dtype=dtype)
    mask = torch.rand(5, 300) < 0.7
    mask[:, 0], mask[3] = True, False
    assert_exact(tokens(5, 9, dtype=dtype), parts, mask[:, :9])
    x = tokens(5, 300, dtype=dtype)
    y = encoder_layer(x, *parts, mask)
    assert torch.equal(y, one_by_one(x, *parts, mask))
    x[~mask] = torch.nan
    assert torch.equal(encoder_layer(x, *parts, mask)[mask], y[mask])
    view = torch.stack((mask, ~mask), dim=2)[..., 0]
    assert torch.equal(encoder_layer(x, *parts, view)[mask], y[mask])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length"), [(7, 300), (2, 1100), (40, 26), (129, 16)])
def test_sequences_go_through_in_parts(isa, torch_threads, dtype, batch, length):
    x, parts = tokens(batch, length, dtype=dtype), layer(dtype=dtype)
    for threads in (1, 2):
        torch_threads(threads)
        y = encoder_layer(x, *parts)
        assert torch.equal(y, one_by_one(x, *parts))


@pytest.mark.parametrize("dtype", DTYPES)
def test_views(isa, dtype):
    """Tokens that lie apart, every second sequence, biases and norms that are columns."""
    parts = layer(dtype=dtype)
    x = tokens(2, 9, dtype=dtype)
    y = encoder_layer(x, *parts)
    apart = torch.full((2, 9, 60), torch.nan, dtype=dtype)
    apart[..., :48] = x
    assert torch.equal(encoder_layer(apart[..., :48], *parts), y)
    without = encoder_layer(x, None, *parts[1:])
    assert torch.equal(encoder_layer(apart[..., :48], None, *parts[1:]), without)
    assert torch.equal(encoder_layer(x.repeat_interleave(2, 0)[::2], *parts), y)
    assert torch.equal(encoder_layer(x.transpose(1, 2).contiguous().transpose(1, 2), *parts), y)
    for part in (parts[0].qkv, parts[0].output, parts[2].up, parts[2].down, parts[1], parts[3]):
        part.bias = torch.stack((part.bias, part.bias * torch.nan), dim=1)[:, 0]
    for part in (parts[1], parts[3]):
        part.weight = torch.stack((part.weight, part.weight * torch.nan), dim=1)[:, 0]
    assert torch.equal(encoder_layer(x, *parts), y)


def test_a_layer_seen_before_is_not_mistaken_for_another():
    """Whatever of it changed since, be it at the same address."""
    x, parts = tokens(2, 9), layer(activation="relu")
    memory = torch.randn(64)
    parts[3].bias = memory[:48]
    for _ in range(2):
        assert_exact(x, parts)
    parts[3].bias = memory
    with pytest.raises(OperandError, match="ffn_norm of shape"):
        encoder_layer(x, *parts)
    parts[3].bias = memory[:48]
    parts[1].weight.data = parts[1].weight * 3
    assert_exact(x, parts)
    parts[0].kv_of = torch.tensor([2, 1, 0], dtype=torch.int32)
    assert_exact(x, parts)
    parts[0].kv_of = torch.tensor([0, 0, 1], dtype=torch.int32)
    assert_exact(x, parts)
    parts[2].up.activation, parts[1].eps = "silu", 0.5
    assert_exact(x, parts)
    with use_backend("reference"):
        y = encoder_layer(x, *parts)
    assert not torch.equal(y, encoder_layer(x, *parts))
    assert oracles.relative_error(y, oracles.encoder_layer(x, *parts)) < 1e-6


@pytest.mark.parametrize("sequences", [1, 2])
def test_inputs_of_a_prepared_layer_are_checked(sequences):
    parts = layer()
    x, mask = tokens(sequences, 9), torch.ones(sequences, 9).bool()
    call = prepare_encoder_layer(x[:, :4], *parts)
    assert torch.equal(call(x, mask), encoder_layer(x, *parts, mask))
    for states, keys, message in (
        (x[..., :47], mask, r"x \[B, T, 48\]"),
        (x[0], mask, r"x \[B, T, 48\]"),
        (x.double(), mask, "of torch.float64"),
        (x.to("meta"), mask, r"x \[B, T, 48\].* on meta"),
        (x, mask[:, 1:], "key_mask bool of shape"),
        (x, mask.int(), "key_mask bool of shape"),
        (x, mask.to("meta"), "got meta"),
    ):
        with pytest.raises(OperandError, match=message):
            call(states, keys)


def test_a_prepared_layer_asks_which_backend_is_forced():
    x, parts = tokens(2, 9), layer()
    call = prepare_encoder_layer(x, *parts)
    with use_backend("reference"):
        assert torch.equal(call(x, None), encoder_layer(x, *parts))
    with use_backend("triton"), pytest.raises(BackendError, match="no such kernel"):
        call(x, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 9), (9, 40), (2, 150)])
def test_layers_in_turn_give_what_each_gives(isa, dtype, batch, length):
    """More than one chunk of sequences, layers of several sizes, and states that lie apart."""
    x = tokens(batch, 2 * length, dtype=dtype)[:, ::2]
    mask = torch.rand(batch, length) < 0.7
    some = [
        layer(dtype=dtype),
        layer(heads=2, kv_heads=1, neurons=160, dtype=dtype),
        layer(dtype=dtype),
    ]
    some[2][0] = None
    expected = x
    for parts in some:
        expected = encoder_layer(expected, *parts, mask)
    before = x.clone()
    y = encoder_layers([prepare_encoder_layer(x, *parts) for parts in some], x, mask)
    assert torch.equal(y, expected)
    assert torch.equal(x, before)


def test_layers_in_turn_of_which_one_is_not_bound():
    x, some = tokens(2, 9), [layer(), layer()]
    some[1][1].bias = torch.randn(48, 2)[:, 0]
    expected = encoder_layer(encoder_layer(x, *some[0]), *some[1])
    calls = [prepare_encoder_layer(x, *parts) for parts in some]
    assert [call.bound is None for call in calls] == [False, True]
    assert torch.equal(encoder_layers(calls, x, None), expected)


def test_layers_in_turn_fit_together():
    x = tokens(2, 9)
    for other in (layer(d=64), layer(dtype=torch.bfloat16)):
        calls = [prepare_encoder_layer(x, *layer())]
        wide = tokens(2, 9, other[1].weight.shape[0], other[1].weight.dtype)
        calls.append(prepare_encoder_layer(wide, *other))
        with pytest.raises(OperandError, match="layers of one dtype and one d"):
            encoder_layers(calls, x, None)


def test_weights_that_lie_apart_are_read_at_each_call():
    """A copy made when the layer was prepared would not follow them."""
    x, parts = tokens(2, 9), layer()
    parts[1].bias = torch.stack((parts[1].bias, parts[1].bias * torch.nan), dim=1)[:, 0]
    call = prepare_encoder_layer(x, *parts)
    parts[1].bias += 1
    assert torch.equal(call(x, None), encoder_layer(x, *parts))


def test_several_callers_at_once(isa):
    parts = [layer(), layer(d=64, heads=2, kv_heads=2)]
    inputs = [tokens(4, 40), tokens(3, 50, 64)]
    expected = [encoder_layer(x, *p) for x, p in zip(inputs, parts, strict=True)]
    wrong = []

    def work(i):
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(encoder_layer(inputs[i], *parts[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=copy_context().run, args=(work, i)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_reference_agrees():
    for dtype in (*DTYPES, torch.float64, torch.float16):
        parts = layer(dtype=dtype)
        with use_backend("reference"):
            assert_exact(tokens(2, 9, dtype=dtype), parts, torch.rand(2, 9) < 0.8)


def test_gradients_are_those_of_the_reference():
    x = tokens(1, 3, 8, torch.float64).requires_grad_()
    parts = layer(d=8, heads=1, kv_heads=1, dim=4, neurons=8, dtype=torch.float64)
    with torch.enable_grad():
        assert torch.autograd.gradcheck(lambda x: encoder_layer(x, *parts), x)


def test_opcheck():
    module = sys.modules[encoder_layer.__module__]
    for dtype, mask in ((torch.float32, None), (torch.bfloat16, torch.rand(2, 9) < 0.8)):
        args = module.arguments(tokens(2, 9, dtype=dtype), *layer(dtype=dtype), mask)
        opcheck(torch.ops.secateurs.encoder_layer.default, args)


def test_backends_that_do_not_run_it_say_why():
    x = tokens(2, 9, dtype=torch.float16)
    choice = explain_choice(encoder_layer, x, *layer(dtype=torch.float16))
    assert choice.backend == "reference"
    assert "takes float32 and bfloat16, got torch.float16" in choice.refusals["cpu"]
    unpaired = layer(neurons=96, block=(48, 48))
    assert (
        "blocks of 16, 32 or 64"
        in explain_choice(encoder_layer, tokens(2, 9), *unpaired).refusals["cpu"]
    )
    with use_backend("triton"), pytest.raises(BackendError, match="no such kernel"):
        encoder_layer(tokens(2, 9), *layer())


def attention_of(parts, **changes):
    return [SimpleNamespace(**{**vars(parts[0]), **changes}), *parts[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: attention_of(p, heads=4), "outputs of qkv for 4 query and 3"),
        (lambda p: attention_of(p, heads=0), "outputs of qkv for 0 query"),
        (lambda p: attention_of(p, output=p[2].up), "output to have 48 outputs"),
        (lambda p: attention_of(p, kv_of=torch.zeros(2, dtype=torch.int32)), "kv_of int32"),
        (lambda p: attention_of(p, kv_of=torch.full((3,), 3, dtype=torch.int32)), "got 3 for head"),
        (lambda p: [p[0], p[1], layer(neurons=64)[2], layer(d=64)[1]], "ffn_norm of shape"),
        (lambda p: [*p[:2], SimpleNamespace(up=layer(d=32)[2].up, down=p[2].down), p[3]], "K = 48"),
        (lambda p: [*p[:2], SimpleNamespace(up=p[2].up, down=p[2].up), p[3]], "down of K = 96"),
        (lambda p: [*p[:2], layer(d=64, neurons=96)[2], p[3]], "up of K = 48"),
        (
            lambda p: [
                *p[:2],
                SimpleNamespace(up=p[2].up, down=layer(d=64, neurons=96)[2].down),
                p[3],
            ],
            "down to have 48",
        ),
        (lambda p: [p[0], layer(dtype=torch.bfloat16)[1], *p[2:]], "weights in the dtype of x"),
        (lambda p: [*p[:2], layer(activation="tanh")[2], p[3]], "an activation among"),
    ],
)
def test_bad_operands(change, message):
    with pytest.raises(OperandError, match=message):
        encoder_layer(tokens(2, 9), *change(layer(neurons=96)))


def test_bad_inputs():
    parts = layer()
    with pytest.raises(OperandError, match="expected x"):
        encoder_layer(tokens(2, 9)[0], *parts)
    for mask in (torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 9)):
        with pytest.raises(OperandError, match="key_mask bool of shape"):
            encoder_layer(tokens(2, 9), *parts, mask)
    with pytest.raises(OperandError, match="on cpu like x"):
        encoder_layer(tokens(2, 9), *parts, torch.ones(2, 9, dtype=torch.bool, device="meta"))
