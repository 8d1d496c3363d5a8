"""The Triton kernels in Triton's interpreter: run by test_triton.py, in a process of its own.

Every buffer a kernel gets lies between guard regions: NaN, wild indices, masks that allow. Every
address it loads from must lie in a buffer, and what is written to a guard region is seen.
"""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import oracles
from triton.tools.tensor_descriptor import TensorDescriptor

from ops.conftest import random_weight
from secateurs import ops
from secateurs.errors import BackendError
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.ops import explain_choice, use_backend
from secateurs.ops._core.tuning import Config, trial
from secateurs.plan.attention_rules import Dense, Global, Local, Sinks, Strided, layout
from secateurs.plan.weight_patterns import Library, TwoFour, VectorNM

GUARD = 256  # elements on either side
DTYPES = {"float32": torch.float32, "float16": torch.float16}


class Guards:
    """Stands in for `launch`: runs the kernel on guarded copies of its buffers."""

    def __init__(self, launch):
        self.launch, self.kernels, self.described = launch, [], []
        self.ranges: list[tuple[int, int]] = []  # addresses of the buffers of the kernel that runs

    def __call__(self, kernel, grid, *args, **meta):
        descriptors = args
        args = [a.base if isinstance(a, TensorDescriptor) else a for a in args]
        copies = [self._guarded(a) if isinstance(a, torch.Tensor) else a for a in args]
        whole = [
            None if not isinstance(a, torch.Tensor) else c[1]
            for a, c in zip(args, copies, strict=True)
        ]
        before = [None if w is None else w.clone() for w in whole]
        views = [c if w is None else c[0] for c, w in zip(copies, whole, strict=True)]
        for i, given in enumerate(descriptors):
            if isinstance(given, TensorDescriptor):
                views[i] = replace(given, base=views[i])
        self.ranges = [
            (w[GUARD:].data_ptr(), w[w.numel() - GUARD :].data_ptr())
            for w in whole
            if w is not None
        ]
        self.launch(kernel, grid, *views, **meta)
        self.kernels.append(kernel.fn.__name__)
        self.described.append(any(isinstance(a, TensorDescriptor) for a in descriptors))
        for arg, now, then in zip(args, whole, before, strict=True):
            if now is None:
                continue
            for edge in (slice(None, GUARD), slice(now.numel() - GUARD, None)):
                assert torch.equal(bits(now[edge]), bits(then[edge])), "written past a buffer"
            flat(arg).copy_(now[GUARD:-GUARD])

    def watch(self, load):
        """The interpreter's load, once it is sure of the addresses."""

        def checked(pointers, mask, *rest, **policies):
            at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
            inside = np.zeros(at.shape, bool)
            for start, end in self.ranges:
                inside |= (at >= start) & (at < end)
            assert inside.all(), "read past a buffer"
            return load(pointers, mask, *rest, **policies)

        return checked

    @staticmethod
    def _guarded(tensor):
        inside = flat(tensor)
        guard = torch.nan if tensor.is_floating_point() else True
        guard = 1 << 28 if tensor.dtype == torch.int32 else guard
        whole = torch.full((inside.numel() + 2 * GUARD,), guard, dtype=tensor.dtype)
        whole[GUARD:-GUARD] = inside
        return whole.as_strided(tensor.shape, tensor.stride(), GUARD), whole


def flat(tensor):
    """All memory a tensor spans, gaps between its rows included."""
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((extent if tensor.numel() else 0,), (1,))


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.fixture(autouse=True)
def guards(monkeypatch):
    shared = importlib.import_module("secateurs.ops._backends.triton")
    guards = Guards(shared.launch)
    monkeypatch.setattr(shared, "launch", guards)
    for op in ("attention", "block_sparse_linear", "pattern_linear"):
        kernels = importlib.import_module(f"secateurs.ops.{op}.triton")
        monkeypatch.setattr(kernels, "launch", guards)
    builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
    load = guards.watch(builder.create_masked_load)
    monkeypatch.setattr(builder, "create_masked_load", load)
    with use_backend("triton"):
        yield guards


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def tolerance(dtype):
    return oracles.TOLERANCE[str(dtype).removeprefix("torch.")]


def assert_exact(op, truth, *args, **kwargs):
    y = op(*args, **kwargs)
    assert y.is_contiguous()
    assert oracles.relative_error(y, truth(*args, **kwargs)) < tolerance(y.dtype)
    return y


def linear(*args, **kwargs):
    return assert_exact(ops.block_sparse_linear, oracles.block_sparse_linear, *args, **kwargs)


def attend(*args, **kwargs):
    return assert_exact(ops.attention, oracles.attention, *args, **kwargs)


# block_sparse_linear


@pytest.mark.parametrize("block", [(16, 16), (32, 32), (64, 64), (128, 128), (16, 64), (64, 16)])
@pytest.mark.parametrize("m", [1, 16, 17, 130])
def test_blocks_and_rows(dtype, block, m):
    weight = random_weight(128, 384, block, 0.6, dtype)
    linear(torch.randn(m, 384).to(dtype), weight)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("m", [3, 33])
def test_epilogue(dtype, activation, m):
    weight = random_weight(96, 64, (32, 32), 0.5, dtype)
    bias, multiplier, residual = (torch.randn(s).to(dtype) for s in ((96,), (m, 96), (m, 96)))
    linear(torch.randn(m, 64).to(dtype), weight, bias, activation, multiplier, residual)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("m", [2, 40])
def test_rows_without_blocks(density, m):
    linear(torch.randn(m, 256), random_weight(128, 256, (16, 16), density), torch.randn(128))


def test_no_rows():
    assert ops.block_sparse_linear(torch.randn(0, 64), random_weight(32, 64)).shape == (0, 32)


def test_outputs_that_end_inside_a_block():
    linear(torch.randn(20, 64), random_weight(50, 64, (32, 32)), torch.randn(50), "gelu")


def test_strided_input_and_many_dimensions():
    x = torch.randn(3, 7, 200)[..., 40:168]
    multiplier = torch.randn(64, 3, 7).permute(1, 2, 0)
    linear(x, random_weight(64, 128), torch.randn(128)[::2], "silu", multiplier)


def test_long_rows_are_split_and_added_in_order(guards):
    weight, x = random_weight(32, 8192, (32, 32), 0.9), torch.randn(2, 8192)
    bias, residual = torch.randn(32), torch.randn(2, 32)
    first = linear(x, weight, bias, "gelu", None, residual)
    assert guards.kernels == ["_product", "_finish"]
    assert torch.equal(first, ops.block_sparse_linear(x, weight, bias, "gelu", None, residual))


def test_uneven_rows_are_shared_out_by_their_blocks(guards):
    weight = random_weight(128, 4096, (32, 32), 1.0)
    lengths = torch.tensor([0, 1, 128, 37])  # blocks of each row
    column = torch.cat([torch.arange(n) for n in lengths]).to(torch.int32)
    weight.indices, weight.values = column, weight.values[: len(column)]
    weight.indptr[1:] = lengths.cumsum(0)
    args = (weight, torch.randn(128), "silu", None, torch.randn(40, 128))
    for m in (3, 40):
        x = torch.randn(m, 4096)
        first = linear(x, *args[:-1], args[-1][:m])
        assert torch.equal(first, ops.block_sparse_linear(x, *args[:-1], args[-1][:m]))
    assert set(guards.kernels) == {"_product", "_finish"}


@pytest.mark.parametrize("block", [(16, 16), (64, 64), (128, 64), (32, 128)])
@pytest.mark.parametrize("m", [1, 16, 41])
@pytest.mark.parametrize("k", [128, 2048])
def test_tensor_descriptors(guards, dtype, block, m, k):
    weight = random_weight(128, k, block, 0.5, dtype)
    x = torch.randn(m, k + 16).to(dtype)[:, 16:]
    with trial(Config(64, 64, 4, 3, descriptors=True)):
        linear(x, weight, torch.randn(128).to(dtype), "gelu")
    assert guards.described[0]
    assert ("_finish" in guards.kernels) == (k == 2048 and block[0] > 16)


@pytest.mark.parametrize(("width", "first"), [(132, 1), (131, 0)])
def test_what_the_copy_engine_cannot_read_goes_by_addresses(guards, width, first):
    x, weight = torch.randn(20, width)[:, first : first + 128], random_weight(64, 128)
    with trial(Config(32, 32, 4, 3, descriptors=True)):
        linear(x, weight)
        linear(torch.randn(1, 128).expand(20, 128), weight)
        linear(torch.randn(20, 128), random_weight(64, 128, density=0.0))
    assert guards.described == [False] * 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is tested here
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_nan_and_infinity_stay_in_their_row(activation):
    x = torch.randn(20, 64)
    x[3, 5], x[7, 9] = torch.nan, torch.inf
    weight = random_weight(32, 64, density=1)
    y = ops.block_sparse_linear(x, weight, None, activation)
    assert y[3].isnan().all()
    grows = ops.block_sparse_linear(x, weight)[7] > 0
    assert grows.any()
    assert (y[7, grows] == torch.inf).all()
    assert y[[i for i in range(20) if i not in (3, 7)]].isfinite().all()


# pattern_linear


def vector_linear(x, weight, bias, activation="none", multiplier=None, residual=None):
    n, k = weight.shape
    dense = np.zeros((n, k))
    for group, columns in enumerate(weight.columns.tolist()):
        outputs = slice(group * weight.vector, (group + 1) * weight.vector)
        for i, column in enumerate(columns):
            dense[outputs, column] = weight.values[group, i].double().numpy()
    y = oracles.activate(activation, x.double().numpy() @ dense.T + bias.double().numpy())
    y = y if multiplier is None else y * multiplier.double().numpy()
    return y if residual is None else y + residual.double().numpy()


@pytest.mark.parametrize("vector", [16, 32, 64, 128])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (5, 16)])
@pytest.mark.parametrize("rows", [1, 16, 50])
def test_vectors(dtype, vector, n, m, rows):
    dense = torch.randn(128, 208).to(dtype)
    weight = VectorWeight.pack(dense, VectorNM(n, m, vector).keep(dense), vector)
    x, bias = torch.randn(rows, 208).to(dtype), torch.randn(128).to(dtype)
    assert_exact(ops.pattern_linear, vector_linear, x, weight, bias, "silu")


def test_vector_epilogue_strides_and_split(guards):
    dense = torch.randn(32, 4096) * 4096**-0.5
    weight = VectorWeight.pack(dense, VectorNM(8, 16, 32).keep(dense), 32)
    x = torch.randn(40, 5000)[:, 100:4196]
    multiplier, residual = torch.randn(40, 32), torch.randn(40, 32)
    for rows in (4, 40):
        args = (x[:rows], weight, torch.randn(32), "gelu", multiplier[:rows], residual[:rows])
        assert_exact(ops.pattern_linear, vector_linear, *args)
    assert guards.kernels == ["_product", "_finish"] * 2


# attention


def qkv(b=2, hq=3, hkv=3, tq=40, tk=40, d=16, dtype=torch.float32):
    return (
        torch.randn(b, hq, tq, d).to(dtype),
        torch.randn(b, hkv, tk, d).to(dtype),
        torch.randn(b, hkv, tk, d).to(dtype),
    )


@pytest.mark.parametrize("d", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_head_dims(dtype, d, causal):
    attend(*qkv(1, 2, 1, 70, 70, d, dtype), causal=causal)


@pytest.mark.parametrize(("tq", "tk"), [(1, 1), (1, 70), (16, 129), (33, 5), (130, 130)])
@pytest.mark.parametrize("causal", [False, True])
def test_lengths(tq, tk, causal):
    attend(*qkv(1, 2, 2, tq, tk), causal=causal, scale=0.3)


@pytest.mark.parametrize("kv_of", [None, [0, 0, 0, 1], [1, 0, 1, 1]])
def test_uneven_heads(kv_of):
    kv_of = None if kv_of is None else torch.tensor(kv_of, dtype=torch.int32)
    attend(*qkv(2, 4, 2), kv_of=kv_of, causal=True)


def test_views_of_one_projection():
    joint = torch.randn(2, 21, 7, 16)
    q, k, v = (t.transpose(1, 2) for t in joint.split([3, 2, 2], dim=2))
    attend(q, k, v, kv_of=torch.tensor([0, 1, 1], dtype=torch.int32))


@pytest.mark.parametrize("causal", [False, True])
def test_padding(causal):
    q, k, v = qkv(3, 2, 2, 70, 70)
    mask = torch.rand(3, 70) < 0.5
    mask[0, 50:], mask[1, :30], mask[2] = False, False, False
    k[~mask[:, None].expand(3, 2, 70)] = torch.nan  # padding may hold anything
    v[~mask[:, None].expand(3, 2, 70)] = torch.nan
    y = attend(q, k, v, key_mask=mask, causal=causal)
    assert (y[2] == 0).all()


@pytest.mark.parametrize("shape", [(2, 1, 40, 40), (3, 1, 40), (40, 40), (1,)])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_explicit_masks(shape, kind):
    mask = torch.randn(shape)
    mask = mask > -0.3 if kind == torch.bool else mask.masked_fill(mask > 1, -torch.inf)
    q, k, v = qkv()
    if kind != torch.bool and len(shape) == 4:
        mask[0, 0, 0] = torch.finfo(torch.float32).min  # hides nothing where it is everywhere
    full = mask.expand(2, 3, 40, 40)
    truth = oracles.attention(q, k, v, mask=full, causal=True)
    got = ops.attention(q, k, v, mask=mask, causal=True)
    assert oracles.relative_error(got, truth) < tolerance(torch.float32)


RULES = [Local(9) | Sinks(2), Strided(5), Dense(), Global(3) | Local(0)]


def allowed(rules, tq, tk, offset):
    """The rules as a mask, one position at a time."""
    mask = torch.zeros(len(rules), tq, tk, dtype=torch.bool)
    for h, rule in enumerate(rules):
        for i in range(tq):
            mask[h, i] = rule.allows(torch.tensor(i + offset), torch.arange(tk))
    return mask


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tq", "tk"), [(70, 100), (1, 40)])
def test_block_patterns(block, causal, tq, tk):
    q, k, v = qkv(2, 4, 2, tq, tk)
    padding = torch.rand(2, tk) < 0.8
    for rules in (RULES, RULES[:1]):
        mask = allowed(rules, tq, tk, tk - tq)[None].expand(2, 4, tq, tk)
        truth = oracles.attention(q, k, v, mask=mask, key_mask=padding, causal=causal)
        blocks = layout(rules, tq, tk, block=block, causal=causal)
        got = ops.attention(q, k, v, key_mask=padding, causal=causal, pattern=blocks)
        assert oracles.relative_error(got, truth) < tolerance(torch.float32)


def test_a_pattern_that_hides_everything_gives_zeros():
    q, k, v = qkv(1, 1, 1, 40, 40)
    nothing = layout(Sinks(0), 40, 40, block=16)
    assert nothing.indices.numel() == 0
    assert (ops.attention(q, k, v, pattern=nothing) == 0).all()


# refusals


def test_refusals_say_why():
    dense = torch.randn(64, 64)
    two_four = VectorWeight.pack(dense, TwoFour().keep(dense), 1)
    library = Library.select(dense, (4, 4), 8)
    coded = LibraryWeight.pack(dense, library.codes(dense), library.patterns)
    x = torch.randn(2, 64)
    for call, reason in (
        (lambda: ops.block_sparse_linear(x, random_weight(96, 64, (48, 32))), r"got \(48, 32\)"),
        (lambda: ops.attention(*qkv(d=24)), "head dimensions .* got 24"),
        (lambda: ops.attention(*qkv(dtype=torch.float64)), "got float64"),
        (lambda: ops.attention(*qkv(dtype=torch.bfloat16)), "interpreter multiplies .* bfloat16"),
        (lambda: ops.pattern_linear(x, two_four), "same inputs, got 1"),
        (lambda: ops.pattern_linear(x, coded), "no kernel for libraries"),
    ):
        with pytest.raises(BackendError, match=reason):
            call()


def test_it_is_the_backend_of_choice_and_says_so():
    with use_backend("auto"):
        choice = explain_choice(ops.attention, *qkv())
    assert choice.backend == "triton"
