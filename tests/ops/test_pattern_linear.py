"""Pattern-sparse linear on the CPU against the float64 formula: every instruction set, both dtypes,
and the shapes that break kernels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import oracles
from support.models import opcheck

from secateurs import _C_cpu
from secateurs.errors import BackendError, FormatError, OperandError
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.ops import ACTIVATIONS, explain_choice, inputs_together, pattern_linear, use_backend
from secateurs.ops._backends import cpu

DTYPES = (torch.float32, torch.bfloat16)


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def vector_weight(n, k, kept, v=32, dtype=torch.float32):
    """A weight whose groups keep `kept` inputs anywhere, packed for the instruction set in use."""
    choice = torch.rand(n // v, k).argsort(1) < kept
    dense = random(n, k, dtype=dtype) * max(kept, 1) ** -0.5
    keep = choice.repeat_interleave(v, 0)
    return VectorWeight.pack(dense, keep, v, inputs_together(torch.device("cpu"), dtype)).validate()


def library_weight(n, k, block, ones, dtype=torch.float32, patterns=16):
    """Blocks of patterns drawn at random, the same pattern twice if need be."""
    p, q = block
    library = torch.rand(patterns, p * q).argsort(1).lt(ones).view(patterns, p, q)
    codes = torch.randint(patterns, (n // p, k // q), dtype=torch.uint8)
    return LibraryWeight.pack(random(n, k, dtype=dtype) * k**-0.5, codes, library)


def truth(x, weight, bias=None, activation="none", multiplier=None, residual=None):
    """The formula, the weight expanded entry by entry from its index."""
    n, k = weight.shape
    dense = np.zeros((n, k))
    values = weight.values.double().numpy()
    if isinstance(weight, VectorWeight):
        s, v = weight.together, weight.vector
        for g, columns in enumerate(weight.columns.tolist()):
            for i, column in enumerate(columns):
                stored = values[g, i // s] if s == 1 else values[g, i // s, :, i % s]
                dense[g * v : (g + 1) * v, column] = stored
    else:
        p, q = weight.library.shape[1:]
        for (r, c), code in np.ndenumerate(weight.codes.numpy()):
            ones = np.argwhere(weight.library[int(code)].numpy())
            for value, (i, j) in zip(values[r, c], ones, strict=True):
                dense[r * p + i, c * q + j] = value
    y = x.double().numpy() @ dense.T
    y = y if bias is None else y + bias.double().numpy()
    y = oracles.activate(activation, y)
    y = y if multiplier is None else y * multiplier.double().numpy()
    return y if residual is None else y + residual.double().numpy()


def assert_exact(x, weight, *args):
    y = pattern_linear(x, weight, *args)
    assert y.dtype == x.dtype
    tolerance = oracles.TOLERANCE[str(x.dtype).removeprefix("torch.")]
    assert oracles.relative_error(y.double(), truth(x, weight, *args)) < tolerance


def spy(monkeypatch, name="pattern_linear"):
    """Instruction set and dtype of the kernel's calls from now on."""
    calls, kernel = [], getattr(_C_cpu, name)
    monkeypatch.setattr(_C_cpu, name, lambda **a: calls.append((kernel(**a), a["dtype"])))
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 25, 32, 33, 70])
@pytest.mark.parametrize("v", [16, 32, 64])
def test_any_number_of_rows(isa, m, v, dtype):
    args = (random(128, dtype=dtype), "relu", None, random(m, 128, dtype=dtype))
    assert_exact(random(m, 96, dtype=dtype), vector_weight(128, 96, 48, v, dtype), *args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "kept"), [(1, 1), (7, 3), (33, 31), (96, 33), (257, 64), (500, 500)])
@pytest.mark.parametrize("m", [1, 20])
def test_any_number_of_kept_inputs(isa, m, k, kept, dtype):
    """Steps of several inputs are left unfinished by most of these."""
    assert_exact(random(m, k, dtype=dtype), vector_weight(96, k, kept, 32, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_kept_leaves_the_epilogue(isa, dtype):
    weight, bias = vector_weight(32, 8, 0, 32, dtype), random(32, dtype=dtype)
    y = pattern_linear(random(5, 8, dtype=dtype), weight, bias)
    assert torch.equal(y, bias.expand(5, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("v", [16, 32])
def test_chunks_of_inputs(isa, torch_threads, threads, v, dtype):
    """Sums wait between chunks of inputs, in several groups of rows."""
    torch_threads(threads)
    args = (random(96, dtype=dtype), "silu")
    assert_exact(random(300, 2500, dtype=dtype), vector_weight(96, 2500, 700, v, dtype), *args)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_rows_than_are_packed_at_once(isa, dtype):
    """Of packed x, 16 MB at a time."""
    assert_exact(random(1100, 4096, dtype=dtype), vector_weight(32, 4096, 64, 32, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("packed", ["vector", "library"])
def test_epilogue(isa, activation, packed, dtype):
    weight = (
        vector_weight(64, 64, 24, 32, dtype)
        if packed == "vector"
        else library_weight(64, 64, (4, 4), 8, dtype)
    )
    x, bias = random(3, 5, 64, dtype=dtype), random(64, dtype=dtype)
    multiplier, residual = random(3, 5, 64, dtype=dtype), random(3, 5, 64, dtype=dtype)
    assert_exact(x, weight, bias, activation)
    assert_exact(x, weight, None, activation, multiplier)
    assert_exact(x, weight, bias, activation, None, residual)
    assert_exact(x, weight, bias, activation, multiplier, residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 8, 11, 16])
@pytest.mark.parametrize(("n", "k"), [(4, 4), (64, 16), (68, 36), (72, 44), (140, 104)])
@pytest.mark.parametrize(("block", "ones"), [((4, 4), 8), ((4, 4), 3), ((1, 4), 2), ((1, 4), 1)])
def test_library(isa, block, ones, n, k, m, dtype):
    weight = library_weight(n, k, block, ones, dtype, patterns=1 + n % 16)
    assert_exact(random(m, k, dtype=dtype), weight, random(n, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_library_on_two_threads(isa, torch_threads, dtype):
    torch_threads(2)
    assert_exact(random(5, 1024, dtype=dtype), library_weight(520, 1024, (4, 4), 8, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_four_runs_as_a_library(isa, dtype):
    dense = random(40, 64, dtype=dtype)
    keep = (torch.rand(40, 16, 4).argsort(2) < 2).view(40, 64)
    packed = LibraryWeight.pack_two_four(dense, keep)
    assert torch.equal(packed.to_dense(), dense * keep)
    assert packed.library.shape == (6, 1, 4)
    assert_exact(random(3, 64, dtype=dtype), packed)
    with pytest.raises(FormatError, match="must keep two"):
        LibraryWeight.pack_two_four(dense, keep ^ (torch.arange(64) == 9))
    with pytest.raises(FormatError, match="K a multiple of 4"):
        LibraryWeight.pack_two_four(dense[:, :63], keep[:, :63])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 40])
def test_infinity_and_nan_pass_through_kept_inputs_only(isa, m, dtype):
    weight = vector_weight(64, 50, 25, 32, dtype)
    x = random(m, 50, dtype=dtype)
    clean = pattern_linear(x, weight)
    column = int(weight.columns[0, 7])
    for value in (torch.nan, torch.inf):
        x[0, column] = value
        y = pattern_linear(x, weight)
        assert not torch.isfinite(y[0, :32]).any()
        assert torch.equal(y[1:], clean[1:])
        if column not in weight.columns[1].tolist():
            assert torch.equal(y[0, 32:], clean[0, 32:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [1, 3, 31, 33, 65])
@pytest.mark.parametrize("m", [1, 40])
def test_a_group_does_not_meet_the_first_input_of_the_next(isa, m, kept, dtype):
    """The last step of a group is unfinished; behind its inputs in the index stands a NaN."""
    dense, keep = random(64, 70, dtype=dtype), torch.zeros(64, 70, dtype=torch.bool)
    keep[:32, :kept], keep[32:, 70 - kept :] = True, True
    weight = VectorWeight.pack(dense, keep, 32, inputs_together(torch.device("cpu"), dtype))
    x = random(m, 70, dtype=dtype)
    clean = pattern_linear(x, weight)
    x[:, max(kept, 70 - kept) :] = torch.nan
    weight.columns[1] = weight.columns[1].flip(0)  # the last input, a NaN, comes first
    assert torch.equal(pattern_linear(x, weight)[:, :32], clean[:, :32])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [20, 24, 36])
@pytest.mark.parametrize("block", [(4, 4), (1, 4)])
def test_library_leaves_no_nan_to_the_next_call(isa, block, k, dtype):
    """Zeros stand behind the inputs of a row, whatever the memory held before."""
    weight = library_weight(8, 64, block, 2, dtype)
    assert pattern_linear(torch.full((3, 64), torch.nan, dtype=dtype), weight).isnan().all()
    assert_exact(random(3, k, dtype=dtype), library_weight(8, k, block, 2, dtype))


def test_single_rows_that_are_packed_by_themselves(isa):
    """Two rows of more than 16 MB together are taken one after the other."""
    k, columns = 2**21 + 1, torch.tensor([[0, 5, 2**21]], dtype=torch.int32)
    weight = VectorWeight(torch.randn(1, 3, 32), columns, (32, k))
    x = torch.randn(2, k)
    few = replace(weight, columns=torch.arange(3, dtype=torch.int32)[None], shape=(32, 3))
    expected = truth(x[:, columns[0].long()], few)
    assert oracles.relative_error(pattern_linear(x, weight), expected) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_is_written_once_and_whole(isa, monkeypatch, dtype):
    weights = vector_weight(96, 64, 20, 32, dtype), library_weight(68, 64, (4, 4), 8, dtype)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, size: x.new_full(size, torch.nan))
    for weight in weights:
        assert_exact(random(13, 64, dtype=dtype), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", ["vector", "library"])
def test_strided_operands(isa, packed, dtype):
    def apart(t):
        wide = torch.full((2, 7, 75), torch.nan, dtype=dtype)
        wide[..., 3:67] = t
        return wide[..., 3:67]

    weight = (
        vector_weight(64, 64, 24, 32, dtype)
        if packed == "vector"
        else library_weight(64, 64, (4, 4), 8, dtype)
    )
    x, multiplier, residual = (apart(random(2, 7, 64, dtype=dtype)) for _ in range(3))
    bias = random(64, 2, dtype=dtype)[:, 0]
    assert_exact(x, weight, bias, "gelu", multiplier, residual)
    turned = random(64, 14, dtype=dtype).t()
    assert_exact(turned, weight, bias, "gelu", turned, turned)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [4, 300])
def test_same_bits_for_any_number_of_threads(isa, torch_threads, m, dtype):
    x, weight = random(m, 512, dtype=dtype), vector_weight(512, 512, 200, 32, dtype)
    library = library_weight(512, 512, (4, 4), 8, dtype)
    results = []
    for threads in (1, 2, 3, 7):
        torch_threads(threads)
        results.append((pattern_linear(x, weight), pattern_linear(x[:16], library)))
    assert all(torch.equal(*pair) for y in results for pair in zip(y, results[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_calls_from_two_python_threads(isa, dtype):
    number = cpu.isa_number()
    cases = [
        (random(200, 256, dtype=dtype), vector_weight(256, 256, 100, 32, dtype)),
        (random(16, 512, dtype=dtype), library_weight(512, 512, (4, 4), 8, dtype)),
    ]
    expected = [pattern_linear(*case) for case in cases]

    def call(i):
        with use_backend("cpu"), cpu.use_isa(cpu.kernels.isa_name(number)):
            return all(torch.equal(pattern_linear(*cases[i]), expected[i]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(call, range(2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_instruction_set_and_dtype_asked_for_are_those_that_run(isa, dtype, monkeypatch):
    vectors, libraries = spy(monkeypatch), spy(monkeypatch, "library_linear")
    pattern_linear(random(2, 32, dtype=dtype), vector_weight(32, 32, 16, 32, dtype))
    pattern_linear(random(2, 32, dtype=dtype), library_weight(32, 32, (4, 4), 8, dtype))
    assert vectors == libraries == [(isa, int(dtype == torch.bfloat16))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_that_keep_unevenly_many(isa, dtype):
    """The kernel's own entry: block-sparse weights of (32, 1) blocks are routed there."""
    x, counts, v = random(40, 200, dtype=dtype), [0, 5, 200, 33, 64], 32
    parts = [vector_weight(v, 200, count, v, dtype) for count in counts]
    values = torch.cat([part.values.flatten() for part in parts])
    columns = torch.cat([part.columns.flatten() for part in parts])
    indptr = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    y = torch.full((40, v * len(counts)), torch.nan, dtype=dtype)
    _C_cpu.pattern_linear(
        **dict(isa=cpu.isa_number(), dtype=cpu.DTYPES[dtype], threads=2),
        **dict(x=x.data_ptr(), x_stride=x.stride(0), m=40, n=y.shape[1], k=200),
        **dict(values=values.data_ptr(), columns=columns.data_ptr(), indptr=indptr.data_ptr()),
        **dict(groups=len(counts), kept=0, v=v, bias=0, activation=0, y=y.data_ptr()),
        **dict(multiplier=0, multiplier_stride=0, residual=0, residual_stride=0),
    )
    expected = np.concatenate([truth(x, part) for part in parts], axis=1)
    tolerance = oracles.TOLERANCE[str(dtype).removeprefix("torch.")]
    assert oracles.relative_error(y.double(), expected) < tolerance


@pytest.mark.parametrize("together", [1, 2, 32])
@pytest.mark.parametrize("kept", [1, 31, 64])
def test_side_by_side_is_only_another_order(together, kept):
    dense = torch.randn(64, 70)
    keep = (torch.rand(2, 70).argsort(1) < kept).repeat_interleave(32, 0)
    packed = VectorWeight.pack(dense, keep, 32, together).validate()
    assert packed.together == together
    assert packed.density == kept / 70
    assert torch.equal(packed.to_dense(), dense * keep)
    x = torch.randn(3, 70, requires_grad=True)
    with use_backend("reference"):
        y = pattern_linear(x, packed)
    torch.testing.assert_close(y, x @ (dense * keep).T)
    if together > 1:
        with pytest.raises(FormatError, match="do not store"):
            replace(packed, columns=packed.columns[:, :0]).validate()


def test_misfits_are_refused_in_words():
    weight = VectorWeight.pack(torch.randn(32, 64), torch.ones(32, 64).bool(), 32, 2)
    with pytest.raises(OperandError, match="at least 64 inputs, got 60"):
        pattern_linear(torch.randn(3, 60), replace(weight, shape=(32, 60)))
    half = VectorWeight.pack(torch.randn(32, 64), (torch.arange(64) >= 32).expand(32, 64), 32)
    for narrow in (half, library_weight(32, 64, (4, 4), 8)):
        with pytest.raises(OperandError, match=r"the weight's K = 64, got shape \(3, 32\)"):
            pattern_linear(torch.randn(3, 32), narrow)
    with pytest.raises(OperandError, match=r"index \[groups, kept\]"):
        pattern_linear(torch.randn(3, 64), replace(weight, columns=weight.columns[:, :62]))


def test_cpu_backend_refuses_in_words_and_never_falls_back(isa):
    x, every = torch.randn(3, 64), torch.ones(32, 64).bool()
    dense = torch.randn(32, 64)
    together = inputs_together(x.device, torch.bfloat16)
    cases = [
        (x.double(), VectorWeight.pack(dense.double(), every, 32), "got torch.float64"),
        (x, VectorWeight.pack(dense, every, 8), "takes 16, 32, 64 or 128 outputs"),
        (x, VectorWeight.pack(dense, every, 1), "runs as a library"),
        (x, VectorWeight.pack(dense, every, 32, 2), "takes 1 inputs of an output side by side"),
        (
            x.bfloat16(),
            VectorWeight.pack(dense.bfloat16(), every, 32, 1),
            f"takes {together} inputs of an output side by side on {isa}, got 1",
        ),
        (x, library_weight(32, 64, (2, 8), 8), "takes blocks of 4 x 4 or 1 x 4, got 2 x 8"),
        (torch.randn(17, 64), library_weight(32, 64, (4, 4), 8), "up to 16 rows of x, .* got 17"),
    ]
    for x, weight, message in cases:
        with pytest.raises(BackendError, match=message):
            pattern_linear(x, weight)
        with use_backend("auto"):
            assert explain_choice(pattern_linear, x, weight).backend == "reference"


def test_torch_accepts_the_operator():
    x = torch.randn(3, 64, requires_grad=True)
    for weight in (vector_weight(64, 64, 20), library_weight(64, 64, (4, 4), 8)):
        library = getattr(weight, "library", None)
        index = weight.columns if library is None else weight.codes
        args = (x, weight.values, index, library, torch.randn(64), "gelu", None, x.detach())
        opcheck(torch.ops.secateurs.pattern_linear.default, args)


def test_compiles_without_graph_breaks():
    weight, x = vector_weight(64, 64, 20), torch.randn(3, 64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(x):
        return pattern_linear(pattern_linear(x, weight, None, "gelu"), weight, residual=x)

    h = pattern_linear(x, weight, None, "gelu")
    assert torch.equal(twice(x), pattern_linear(h, weight, residual=x))
