"""Weight patterns against every member of the family, and their formats there and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from support.models import opcheck
from torch.nn import functional as F

from secateurs import ops
from secateurs.errors import FormatError, OperandError, PatternError
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.plan.weight_patterns import Library, TwoFour, VectorNM


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def error(weight, keep):
    return float((weight * ~keep).double().square().sum())


def choices(size, count):
    """Every mask of `size` with `count` True."""
    for ones in combinations(range(size), count):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(ones)] = True
        yield mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 6)])
@pytest.mark.parametrize("vector", [1, 3])
def test_nearest_vector_pattern(n, m, vector):
    family, weight = VectorNM(n, m, vector), torch.randn(vector, m)
    best = min(error(weight, mask.expand(vector, m)) for mask in choices(m, n))
    assert error(weight, family.keep(weight)) == pytest.approx(best)
    tiled = torch.randn(4 * vector, 3 * m)
    keep = family.keep(tiled)
    for i, j in product(range(4), range(3)):
        rows, columns = slice(i * vector, (i + 1) * vector), slice(j * m, (j + 1) * m)
        assert torch.equal(keep[rows, columns], family.keep(tiled[rows, columns]))
    assert float(keep.float().mean()) == pytest.approx(family.density)
    assert torch.equal(family.project(tiled), tiled * keep)


def test_two_four_is_a_vector_of_one():
    weight = torch.randn(8, 16)
    assert torch.equal(TwoFour().keep(weight), VectorNM(2, 4, 1).keep(weight))


def test_equal_weights_keep_the_first():
    assert TwoFour().keep(torch.ones(1, 4)).tolist() == [[True, True, False, False]]


def test_nearest_pattern_of_a_library():
    patterns = torch.stack(list(choices(6, 3)))[[0, 4, 9, 15]].view(4, 2, 3)
    family, weight = Library(patterns), torch.randn(8, 12)
    keep = family.keep(weight)
    for i, j in product(range(4), range(4)):
        tile = (slice(2 * i, 2 * i + 2), slice(3 * j, 3 * j + 3))
        best = min(error(weight[tile], pattern) for pattern in patterns)
        assert error(weight[tile], keep[tile]) == pytest.approx(best)


def test_a_library_of_every_pattern_loses_nothing_to_free_choice():
    weight = torch.randn(16, 16)
    library = Library.select(weight, (1, 4), ones=2, count=6)
    assert len(library.patterns) == 6
    assert torch.equal(library.keep(weight), TwoFour().keep(weight))


def test_selection_finds_the_patterns_a_weight_was_made_of():
    truth = torch.stack(list(choices(8, 3)))[[3, 17, 40]].view(3, 2, 4)
    made = Library(truth).project(torch.randn(32, 32))
    library = Library.select(made, (2, 4), ones=3, count=3)
    assert {tuple(p.flatten().tolist()) for p in library.patterns} == {
        tuple(p.flatten().tolist()) for p in truth
    }
    assert error(made, library.keep(made)) == 0


def test_more_patterns_never_lose_more():
    weight = torch.randn(32, 32)
    errors = [
        error(weight, Library.select(weight, (4, 4), ones=4, count=c).keep(weight))
        for c in (1, 2, 4, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize(("n", "m", "vector"), [(2, 4, 16), (1, 4, 32), (8, 16, 128), (2, 4, 1)])
def test_vector_weights_there_and_back(n, m, vector):
    family, weight = VectorNM(n, m, vector), torch.randn(128, 64)
    packed = VectorWeight.pack(weight, family.keep(weight), vector).validate()
    assert packed.values.shape == (128 // vector, 64 * n // m, vector)
    assert packed.density == family.density
    assert torch.equal(packed.to_dense(), family.project(weight))


def test_library_weights_there_and_back():
    weight = torch.randn(24, 32)
    library = Library.select(weight, (4, 8), ones=8)
    packed = LibraryWeight.pack(weight, library.codes(weight), library.patterns).validate()
    assert packed.density == library.density == 0.25
    assert torch.equal(packed.to_dense(), library.project(weight))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_the_operation_is_the_dense_one_on_the_projected_weight(activation):
    weight = torch.randn(64, 32, dtype=torch.float64)
    x, bias = torch.randn(5, 7, 32, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    multiplier, residual = torch.randn(2, 5, 7, 64, dtype=torch.float64)
    library = Library.select(weight, (4, 4), ones=8)
    for family, packed in (
        (TwoFour(), VectorWeight.pack(weight, TwoFour().keep(weight), 1)),
        (VectorNM(2, 4, 16), VectorWeight.pack(weight, VectorNM(2, 4, 16).keep(weight), 16)),
        (library, LibraryWeight.pack(weight, library.codes(weight), library.patterns)),
    ):
        y = ops.ACTIVATIONS[activation](F.linear(x, family.project(weight), bias))
        got = ops.pattern_linear(x, packed, bias, activation, multiplier, residual)
        assert torch.allclose(got, y * multiplier + residual, rtol=1e-12)


def test_gradients_of_everything():
    weight = torch.randn(16, 8, dtype=torch.float64)
    packed = VectorWeight.pack(weight, TwoFour().keep(weight), 1)
    x, bias = torch.randn(3, 8, dtype=torch.float64), torch.randn(16, dtype=torch.float64)

    def call(x, values, bias):
        return ops.pattern_linear(x, VectorWeight(values, packed.columns, (16, 8)), bias, "gelu")

    inputs = [t.requires_grad_() for t in (x, packed.values, bias)]
    assert torch.autograd.gradcheck(call, inputs)


def test_opcheck():
    weight = torch.randn(32, 16)
    packed = VectorWeight.pack(weight, VectorNM(2, 4, 16).keep(weight), 16)
    library = Library.select(weight, (4, 4), ones=8)
    coded = LibraryWeight.pack(weight, library.codes(weight), library.patterns)
    x, bias = torch.randn(3, 16, requires_grad=True), torch.randn(32)
    for args in (
        (x, packed.values, packed.columns, None, bias, "gelu", None, torch.randn(3, 32)),
        (x, coded.values, coded.codes, coded.library, None, "none", torch.randn(3, 32), None),
    ):
        opcheck(torch.ops.secateurs.pattern_linear.default, args)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda w: VectorNM(5, 4, 1), "got 5:4"),
        (lambda w: VectorNM(2, 4, 3).keep(w), "multiple of 3"),
        (lambda w: VectorNM(2, 5, 1).keep(w), "K of 5"),
        (lambda w: Library(torch.ones(17, 2, 2).bool()), "got 17"),
        (lambda w: Library(torch.eye(2).bool()[None].repeat(2, 1, 1).index_fill(0, torch.tensor(0),
                                                                               True)), "equally"),
        (lambda w: Library(torch.ones(2, 2)), "expected patterns as bool"),
        (lambda w: Library.select(w, (2, 2), ones=5), "expected 1 to 4 ones"),
        (lambda w: Library.select(w, (3, 2), ones=1), "multiple of 3"),
    ],
)  # fmt: skip
def test_bad_patterns(make, reason):
    with pytest.raises(PatternError, match=reason):
        make(torch.randn(8, 8))


def test_bad_packings():
    weight = torch.randn(8, 8)
    keep = VectorNM(2, 4, 4).keep(weight)
    with pytest.raises(FormatError, match="groups of 3"):
        VectorWeight.pack(weight, keep, 3)
    with pytest.raises(FormatError, match="same for each 8"):
        VectorWeight.pack(weight, keep ^ (torch.arange(8) < 4)[:, None], 8)
    uneven = keep.clone()
    uneven[:4] = True
    with pytest.raises(FormatError, match="equally many inputs, got 4 to 8"):
        VectorWeight.pack(weight, uneven, 4)
    packed = VectorWeight.pack(weight, keep, 4)
    with pytest.raises(FormatError, match=r"lie in 0\.\.7"):
        VectorWeight(packed.values, packed.columns + 7, (8, 8)).validate()
    with pytest.raises(FormatError, match="rise"):
        VectorWeight(packed.values, packed.columns.flip(1), (8, 8)).validate()
    with pytest.raises(FormatError, match="int32"):
        VectorWeight(packed.values, packed.columns.long(), (8, 8)).validate()
    library = Library.select(weight, (2, 2), ones=2, count=3)
    with pytest.raises(FormatError, match=r"codes must lie in 0\.\.2, got 3"):
        LibraryWeight.pack(weight, torch.full((4, 4), 3), library.patterns)
    with pytest.raises(FormatError, match="does not divide"):
        LibraryWeight.pack(torch.randn(7, 8), torch.zeros(3, 4), library.patterns)
    coded = LibraryWeight.pack(weight, library.codes(weight), library.patterns)
    with pytest.raises(FormatError, match=r"\(2, 2\) do not divide a weight of shape \(9, 8\)"):
        replace(coded, shape=(9, 8)).validate()
    with pytest.raises(FormatError, match="do not divide"):
        replace(coded, library=coded.library[:, :0]).validate()


def test_operands_that_do_not_fit():
    weight = torch.randn(32, 16)
    packed = VectorWeight.pack(weight, VectorNM(2, 4, 16).keep(weight), 16)
    for args, reason in (
        ((torch.randn(2, 4), packed), "the weight's K = 16, got shape"),
        ((torch.randn(2, 16), packed, torch.randn(31)), r"bias of shape \(32,\)"),
        ((torch.randn(2, 16), packed, None, "tanh"), "activation among"),
        (
            (torch.randn(2, 16), packed, None, "none", torch.randn(3, 32)),
            r"multiplier of shape \(2, 32\)",
        ),
        ((torch.randn(2, 16).double(), packed), "values in the dtype of x"),
    ):
        with pytest.raises(OperandError, match=reason):
            ops.pattern_linear(*args)
