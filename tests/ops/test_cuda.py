"""The `cuda` backend as Python sees it: on CPU tensors, its module built on the emulator, and on a
GPU where there is one. SECATEURS_REQUIRE=cuda turns the skips of the latter into failures."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from copy import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from support import oracles

from ops.conftest import random_weight
from secateurs import ops
from secateurs.conversion.modules.pattern_linear import pack
from secateurs.errors import BackendError, FormatError
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.ops import use_backend
from secateurs.ops._backends import cuda
from secateurs.ops.attention.cuda import _run as run_attention
from secateurs.ops.attention.operands import Operands
from secateurs.ops.pattern_linear.cuda import takes_two_four
from secateurs.plan.attention_rules import Local, Sinks, Strided, layout
from secateurs.plan.weight_patterns import VectorNM

EMULATOR = Path(__file__).parents[1] / "emulator"
HEADER = Path(sysconfig.get_path("include")) / "Python.h"


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    sys.path.insert(0, str(EMULATOR))
    try:
        from build import build_module
    finally:
        sys.path.remove(str(EMULATOR))
    folder = os.environ.get("SECATEURS_EMULATOR") or tmp_path_factory.mktemp("emulated")
    path = build_module(Path(folder) / "module")
    spec = importlib.util.spec_from_file_location("_C_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["emulator", "gpu"])
def run(request, monkeypatch):
    """Calls an operation on the backend `cuda`: takes tensors on the CPU and gives one back."""
    device = "cpu"
    if request.param == "emulator":
        if platform.system() != "Linux" or not shutil.which("g++") or not HEADER.exists():
            pytest.skip("the emulator needs Linux, g++ and Python's headers")
        monkeypatch.setattr(cuda, "_C_cuda", request.getfixturevalue("module"))
    else:
        device = "cuda"
        if cuda.kernels() is None or not torch.cuda.is_available():
            required = "cuda" in os.environ.get("SECATEURS_REQUIRE", "").split(",")
            (pytest.fail if required else pytest.skip)("no GPU here, or built without CUDA")

    def run(op, *args, **kwargs):
        args = [moved(value, device) for value in args]
        kwargs = {name: moved(value, device) for name, value in kwargs.items()}
        return op(*args, **kwargs).cpu()

    with use_backend("cuda"):
        yield run


def moved(value, device):
    """A tensor, a view as the same view, or a copy of what holds tensors, on a device."""
    if isinstance(value, torch.Tensor):
        if value.device.type == device:
            return value
        whole = value.new_empty(0).set_(value.untyped_storage()).to(device)
        return whole.as_strided(value.shape, value.stride(), value.storage_offset())
    if device != "cpu" and hasattr(value, "__dict__"):
        value = copy(value)
        for name, held in vars(value).items():
            object.__setattr__(value, name, moved(held, device))
    return value


@pytest.fixture(params=["float16", "bfloat16"])
def dtype(request):
    return getattr(torch, request.param)


def assert_near(got, truth):
    assert got.is_contiguous()
    name = str(got.dtype).removeprefix("torch.")
    assert oracles.relative_error(got.float(), truth) < oracles.TOLERANCE[name]


def linear_oracle(x, weight, *finish):
    """What the formula says of the very numbers the kernel is given."""
    up = [t.float() if isinstance(t, torch.Tensor) else t for t in finish]
    exact = type(weight)(**{**vars(weight), "values": weight.values.float()})
    return oracles.block_sparse_linear(x.float(), exact, *up)


@pytest.mark.parametrize("block", [(16, 16), (32, 64), (64, 32), (128, 128)])
@pytest.mark.parametrize("m", [1, 7, 40, 70, 150])
def test_block_sparse_linear(run, dtype, block, m):
    n = 256
    weight = random_weight(n, 512, block, 0.5, dtype)
    x, bias = torch.randn(m, 512).to(dtype), torch.randn(n).to(dtype)
    multiplier, residual = torch.randn(2, m, n).to(dtype)
    finish = (bias, "gelu", multiplier, residual)
    assert_near(run(ops.block_sparse_linear, x, weight, *finish), linear_oracle(x, weight, *finish))


def test_block_sparse_linear_takes_views(run):
    """Rows apart, a start off the 16-byte boundary, column-major operands: copied or not."""
    weight = random_weight(64, 64, (16, 16), 0.5, torch.float16)
    wide = torch.randn(2, 5, 80).half()
    bias = torch.randn(64, 2).half()[:, 0]
    multiplier = torch.randn(2, 64, 5).half().transpose(1, 2)
    uneven = torch.randn(2, 5, 84).half()[..., :64]
    views = (wide[..., :64], wide[..., 3:67], wide[..., 8:72].transpose(0, 1), wide[0, 0, :64])
    for x in (*views, uneven):
        rows = x if x.dim() == 3 else x[None]
        finish = (bias, "silu", multiplier if rows.shape[:2] == (2, 5) else None, None)
        assert_near(
            run(ops.block_sparse_linear, x, weight, *finish), linear_oracle(x, weight, *finish)
        )


def test_linear_without_blocks_inputs_or_rows(run):
    bias, residual = torch.randn(64).half(), torch.randn(3, 64).half()
    empty = random_weight(64, 64, (16, 16), 0, torch.float16)
    y = run(ops.block_sparse_linear, torch.randn(3, 64).half(), empty, bias, "none", None, residual)
    assert torch.equal(y, bias + residual)
    y = run(
        ops.block_sparse_linear,
        torch.randn(3, 0).half(),
        random_weight(64, 0, (16, 16), 0, torch.float16),
        bias,
    )
    assert torch.equal(y, bias.expand(3, 64))
    assert run(ops.block_sparse_linear, torch.randn(0, 64).half(), empty).shape == (0, 64)


def test_pruned_block_ignores_infinity(run):
    weight = random_weight(64, 128, (32, 32), 0.4, torch.float16)
    weight.indices[:] = weight.indices // 2  # nobody reads the last two columns of blocks
    weight.indices[:] = 0
    x = torch.randn(4, 128).half()
    clean = run(ops.block_sparse_linear, x, weight)
    x[:, 32:] = torch.inf
    assert torch.equal(run(ops.block_sparse_linear, x, weight), clean)


def test_cuda_backend_refuses_in_words(run):
    x = torch.randn(3, 64)
    cases = [
        (x, random_weight(64, 64, (32, 32)), "takes float16, bfloat16, got float32"),
        (x.half(), random_weight(64, 64, (8, 8), dtype=torch.float16), r"got \(8, 8\)"),
    ]
    unaligned = random_weight(64, 64, (32, 32), 1, torch.float16)
    unaligned.values = (
        torch.randn(1 + unaligned.values.numel()).half()[1:].view_as(unaligned.values)
    )
    cases.append((x.half(), unaligned, "values contiguous and on a 16-byte boundary"))
    for x, weight, message in cases:
        with pytest.raises(BackendError, match=message):
            run(ops.block_sparse_linear, x, weight)


def product_oracle(x, weight, bias, residual):
    return (x.double() @ weight.to_dense().double().T + bias.double() + residual.double()).numpy()


@pytest.mark.parametrize("vector", [1, 16, 32, 64, 128])
@pytest.mark.parametrize("m", [1, 16, 21, 70, 150])
def test_vector_patterns(run, dtype, vector, m):
    """One output at a time is 2:4 on the sparse tensor cores. Rows of x stand apart."""
    dense = torch.randn(256, 192) / 10
    weight = VectorWeight.pack(dense.to(dtype), VectorNM(2, 4, vector).keep(dense), vector, 1)
    x, residual = torch.randn(m, 208).to(dtype)[:, :192], torch.randn(m, 256).to(dtype)
    bias = torch.randn(256).to(dtype)
    got = run(ops.pattern_linear, x, weight, bias, "none", None, residual)
    assert_near(got, product_oracle(x, weight, bias, residual))


@pytest.mark.parametrize(("n", "k", "vectors"), [(64, 96, True), (40, 96, False), (64, 80, False)])
def test_two_four_is_packed_for_the_sparse_tensor_cores(run, monkeypatch, n, k, vectors):
    """What `convert` does with such a mask on a GPU; shapes they do not take go on as a library."""
    monkeypatch.setattr(ops, "sparse_tensor_cores", lambda _, shape: takes_two_four(*shape))
    dense, x = (torch.randn(n, k) / 10).half(), torch.randn(5, k).half()
    keep = VectorNM(2, 4, 1).keep(dense.float())
    packed = pack(dense, keep, (1, 1))
    assert isinstance(packed, VectorWeight) == vectors
    assert torch.equal(packed.to_dense(), dense * keep)
    zeros = torch.zeros(n).half(), torch.zeros(5, n).half()
    got = run(ops.pattern_linear, x, packed)
    assert_near(got, product_oracle(x, packed, *zeros))
    keep[0, :4] = torch.tensor([True, True, True, False])
    keep[0, 4:8] = torch.tensor([True, False, False, False])
    with pytest.raises(FormatError, match="equally many ones"):
        pack(dense, keep, (1, 1))


def test_places_are_packed_as_the_ptx_manual_draws_them():
    """Figure "Sparse MMA .m16n8k32 metadata layout for .f16/.bf16 type": of every four lanes the
    first two tell inputs 0-15 and 16-31, their low halves of row lane / 4, the high ones 8 rows on;
    two bits a place, the first lowest."""
    keep = VectorNM(2, 4, 1).keep(torch.randn(48, 96))
    words = VectorWeight.pack(keep.half(), keep, 1).places
    told = torch.zeros_like(keep)
    for tile, step, group, lane in product(range(3), range(3), range(8), range(2)):
        word = int(words[tile, step, group, lane]) % 2**32
        for place in range(16):
            row = tile * 16 + group + place // 8 * 8
            four = step * 8 + lane * 4 + place % 8 // 2
            told[row, four * 4 + (word >> 2 * place & 3)] = True
    assert torch.equal(told, keep)


@pytest.mark.parametrize(("p", "q", "ones"), [(4, 4, 8), (8, 2, 3), (16, 16, 100)])
def test_library_patterns(run, dtype, p, q, ones):
    library = torch.stack([torch.randperm(p * q) < ones for _ in range(5)]).view(5, p, q)
    codes = torch.randint(5, (96 // p, 320 // q))
    weight = LibraryWeight.pack((torch.randn(96, 320) / 10).to(dtype), codes, library)
    for m in (1, 16):
        x, bias, residual = torch.randn(m, 336), torch.randn(96), torch.randn(m, 96)
        x, bias, residual = (t.to(dtype) for t in (x, bias, residual))
        x = x[:, 8:328]
        got = run(ops.pattern_linear, x, weight, bias, "none", None, residual)
        assert_near(got, product_oracle(x, weight, bias, residual))


def test_cuda_pattern_linear_refuses_in_words(run):
    dense = torch.randn(32, 64).half()
    library = torch.zeros(1, 4, 4, dtype=torch.bool)
    library[0, 0] = True
    packed = LibraryWeight.pack(dense, torch.zeros(8, 16), library)
    uneven = VectorNM(2, 4, 1).keep(dense.float())
    uneven[0, :8] = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    cases = [
        (packed, 17, "at most 16 rows of x, got 17"),
        (
            VectorWeight.pack(dense, VectorNM(2, 4, 8).keep(dense.float()), 8, 1),
            3,
            "same inputs, got 8",
        ),
        (VectorWeight.pack(dense, VectorNM(1, 4, 1).keep(dense.float()), 1), 3, "with 16 kept"),
        (VectorWeight.pack(dense, uneven, 1), 3, "of every four inputs"),
    ]
    for weight, m, message in cases:
        with pytest.raises(BackendError, match=message):
            run(ops.pattern_linear, torch.randn(m, 64).half(), weight)


def heads(b, hq, hkv, tq, tk, d, dtype):
    return torch.randn(b, hq, tq, d).to(dtype), *torch.randn(2, b, hkv, tk, d).to(dtype)


def attention_oracle(q, k, v, **kwargs):
    return oracles.attention(q.float(), k.float(), v.float(), **kwargs)


@pytest.mark.parametrize("d", [32, 64, 80, 96, 128])
@pytest.mark.parametrize(("tq", "tk"), [(1, 70), (90, 90), (50, 20)])
def test_attention(run, dtype, d, tq, tk):
    q, k, v = heads(2, 4, 2, tq, tk, d, dtype)
    padding = torch.rand(2, tk) < 0.8
    for kwargs in (dict(causal=True), dict(key_mask=padding, scale=0.3)):
        assert_near(run(ops.attention, q, k, v, **kwargs), attention_oracle(q, k, v, **kwargs))
    kv_of = torch.tensor([1, 1, 0, 1], dtype=torch.int32)
    assert_near(run(ops.attention, q, k, v, kv_of=kv_of), attention_oracle(q, k, v, kv_of=kv_of))


def test_attention_of_few_queries_in_parts(run, dtype):
    """So many keys that they are shared out, also where a pattern leaves of them what it does."""
    tq, tk = 3, 1600
    q, k, v = heads(2, 4, 2, tq, tk, 64, dtype)
    for kwargs in (dict(causal=True), dict(key_mask=torch.rand(2, tk) < 0.8)):
        assert_near(run(ops.attention, q, k, v, **kwargs), attention_oracle(q, k, v, **kwargs))
    rule = Local(900) | Sinks(64)
    mask = rule.allows(torch.arange(tq)[:, None] + tk - tq, torch.arange(tk))
    truth = attention_oracle(q, k, v, mask=mask, causal=True)
    blocks = layout(rule, tq, tk, block=64, causal=True)
    assert_near(run(ops.attention, q, k, v, causal=True, pattern=blocks), truth)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("shared", [False, True])
def test_attention_patterns(run, block, shared):
    tq, tk = 70, 150
    q, k, v = heads(1, 2, 1, tq, tk, 32, torch.float16)
    rules = [Local(9) | Sinks(2)] if shared else [Strided(5), Local(40)]
    at = torch.arange(tq)[:, None] + tk - tq
    mask = torch.stack([rule.allows(at, torch.arange(tk)) for rule in rules])[None]
    blocks = layout(rules if len(rules) > 1 else rules[0], tq, tk, block=block, causal=True)
    truth = attention_oracle(q, k, v, mask=mask.expand(-1, 2, -1, -1), causal=True)
    assert_near(run(ops.attention, q, k, v, causal=True, pattern=blocks), truth)


def test_attention_takes_views(run):
    """Slices of a fused projection as they are; rows off the 16-byte boundary by a copy."""
    joint = torch.randn(2, 20, 8, 40).half()
    for wide in (
        joint[..., :32],
        joint[..., 3:35],
        joint[..., 8:].transpose(1, 3).contiguous().transpose(1, 3),
        torch.randn(2, 20, 8, 32, 8).half()[..., 0],
    ):
        q, k, v = (t.transpose(1, 2) for t in wide.split([4, 2, 2], dim=2))
        truth = attention_oracle(q, k, v)
        for apart in ((q, k, v), (q.contiguous(), k, v), (q, k.contiguous(), v)):
            assert_near(run(ops.attention, *apart), truth)


def test_attention_without_keys_heads_or_queries(run):
    none = run(ops.attention, *heads(2, 3, 3, 5, 0, 32, torch.float16))
    assert torch.equal(none, torch.zeros(2, 5, 3, 32).half())
    assert run(ops.attention, *heads(2, 0, 0, 5, 5, 32, torch.float16)).shape == (2, 5, 0, 32)
    assert run(ops.attention, *heads(2, 3, 3, 0, 5, 32, torch.float16)).shape == (2, 0, 3, 32)


def test_cuda_attention_refuses_in_words(run):
    q, k, v = heads(1, 2, 2, 5, 5, 32, torch.float16)
    cases = [
        (dict(mask=torch.ones(5, 5, dtype=torch.bool)), "no explicit mask"),
        (dict(q=q[..., :8], k=k[..., :8], v=v[..., :8]), "heads of 32, .* got 8"),
        (dict(scale=0.0), "a scale above 0, got 0"),
        (dict(scale=-0.5), "a scale above 0, got -0.5"),
    ]
    for change, message in cases:
        with pytest.raises(BackendError, match=message):
            run(ops.attention, **{"q": q, "k": k, "v": v, **change})


def attention_on_cuda(tokens):
    return run_attention(Operands(*(tokens,) * 3, None, None, None, False, 1.0, *(None,) * 4))


def test_a_launch_that_fails_names_the_kernel_the_problem_and_how_it_was_cut(run):
    """What the backend refuses, launched all the same: a grid too deep."""
    tokens = torch.zeros(65536, 2, 1, 32).half()
    with pytest.raises(BackendError, match=r"at most 65535 sequences .* got \(65536, 2\)"):
        run(ops.attention, tokens, tokens, tokens)
    launched = r"launching attention of 65536x2 \(2\) heads of 32, 1 queries, 1 keys, .*"
    with pytest.raises(RuntimeError, match=f"{launched}in tiles of 16, 1 heads in one, 0 parts: "):
        run(attention_on_cuda, tokens)


def both_norms(*args):
    return torch.stack(ops.sum_and_norm(*args))


def assert_norms(run, x, residual, weight, bias, *rest):
    """The norm alone, and with the sum beside it."""
    exact = (None if t is None else t.double() for t in (x, residual, weight, bias))
    total, truth = oracles.add_norm(*exact, *rest)
    y = run(ops.add_norm, x, residual, weight, bias, *rest)
    both = run(both_norms, x, residual, weight, bias, *rest)
    assert_near(y, truth)
    assert_near(both[0], total)
    assert torch.equal(both[1], y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("d", [1, 7, 64, 385, 2304])
def test_add_norm(run, dtype, d):
    x, residual = (torch.randn(2, 3, d) + 1.5).to(dtype), torch.randn(2, 3, d).to(dtype)
    weight, bias = torch.randn(2, d).to(dtype)
    assert_norms(run, x, residual, weight, bias, 1e-5, False)
    assert_norms(run, x, None, weight, None, 0.25, True)


def test_add_norm_takes_views_and_nothing(run):
    """Rows apart, columns first, one row for all, parameters apart; no rows, no columns."""
    wide = torch.full((4, 5, 80), torch.nan)
    wide[..., 3:67] = torch.randn(4, 5, 64)
    weight, bias = torch.randn(64, 4).half()[:, ::2].unbind(1)
    apart, columns = wide.half()[..., 3:67], torch.randn(64, 5, 4).half().permute(2, 1, 0)
    for x, residual in ((apart, columns), (columns, apart[:, :1].expand(4, 5, 64))):
        assert_norms(run, x, residual, weight, bias, 1e-6, False)
    assert_norms(run, torch.randn(64).half(), None, weight, bias, 1e-6, False)
    for shape in ((0, 64), (3, 0)):
        weight = torch.randn(shape[1]).half()
        assert run(ops.add_norm, torch.randn(shape).half(), None, weight).shape == shape
        assert run(both_norms, torch.randn(shape).half(), None, weight).shape == (2, *shape)


def test_cuda_add_norm_refuses_in_words(run):
    widest = cuda.kernels().widest_norm
    for x, message in (
        (torch.randn(1, widest + 1), f"rows of at most {widest}, got {widest + 1}"),
        (torch.randn(1, 8).double(), "takes float16, bfloat16, float32, got float64"),
    ):
        with pytest.raises(BackendError, match=message):
            run(ops.add_norm, x, None, x[0])
