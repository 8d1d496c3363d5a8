"""ADMM for one linear against the same iterations in NumPy, exact solutions, and magnitude."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.models import relative

from secateurs import Levels
from secateurs.plan.weight_patterns import Family, Library, TwoFour, VectorNM
from secateurs.reconstruction.admm import Admm, InputNorm


def problem(seed: int, outputs: int = 16, inputs: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Gram matrix of inputs that depend on each other and differ in size."""
    random = torch.Generator().manual_seed(seed)
    weight, mix, x, size = (
        torch.randn(shape, generator=random, dtype=torch.float64)
        for shape in ((outputs, inputs), (inputs, inputs), (200, inputs), (inputs,))
    )
    x = (x + 0.7 * x @ mix / inputs**0.5 + x[:, :1]) * size.exp()
    return weight, x.T @ x


def loss(weight: torch.Tensor, target: torch.Tensor, gram: torch.Tensor) -> float:
    change = weight.double() - target
    return float((change @ gram * change).sum())


def family(name: str, weight: torch.Tensor) -> Family:
    if name == "library":
        return Library.select(weight, (4, 4), 8, 8)
    return {"2:4": TwoFour(2), "vector": VectorNM(2, 4, 8), "vector 1:4": VectorNM(1, 4, 8)}[name]


def two_of_four(scaled: np.ndarray) -> np.ndarray:
    """The largest two of every four inputs, which groups of eight outputs share."""
    keep = np.zeros(scaled.shape, bool)
    for row in range(0, scaled.shape[0], 8):
        for start in range(0, scaled.shape[1], 4):
            energy = (scaled[row : row + 8, start : start + 4] ** 2).sum(0)
            keep[row : row + 8, start + np.argsort(-energy, kind="stable")[:2]] = True
    return keep


def test_it_is_the_iterations_as_they_are_written():
    """In float64 and with a system solved anew each time: the mask free for 7, held for 5."""
    weight, gram = problem(0)
    h, rho = gram.numpy(), 0.5
    d = np.sqrt(np.diag(h))
    hn, v = h / np.outer(d, d), weight.numpy() * d
    z, u, keep = v, np.zeros_like(v), None
    for step in range(12):
        x = np.linalg.solve(hn + rho * np.eye(len(h)), (v @ hn + rho * (z - u)).T).T
        if step < 7:
            keep = two_of_four(x + u)
        z = (x + u) * keep
        u = u + x - z
    admm = Admm(weight, InputNorm(gram, rho))
    found = admm.choose(VectorNM(2, 4, 8).keep, 7)
    admm.hold(found, iterations=5)
    assert np.array_equal(found.numpy(), keep)
    assert relative(admm.weight.double(), torch.from_numpy(z / d)) < 1e-4


def test_a_held_mask_ends_in_the_least_squares_under_it():
    weight, gram = problem(1)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[3] = False
    exact = torch.zeros_like(weight)
    for row, kept in enumerate(keep):
        wanted = (weight[row] @ gram)[kept]
        exact[row, kept] = torch.linalg.solve(gram[kept][:, kept], wanted)
    short, long = (Admm(weight, InputNorm(gram)) for _ in range(2))
    short.hold(keep)
    long.hold(keep, iterations=1500)
    assert relative(long.weight.double(), exact) < 1e-3
    best, first = loss(exact, weight, gram), loss(weight * keep, weight, gram)
    assert best < loss(short.weight, weight, gram) < best + 0.1 * (first - best)
    assert not short.weight[~keep].any()


@pytest.mark.parametrize("name", ["2:4", "vector", "vector 1:4", "library"])
@pytest.mark.parametrize("seed", range(4))
def test_it_loses_less_than_the_largest_weights(name, seed):
    """Less than magnitude, than |w| |x|, and than the least squares under the mask of either."""
    weight, gram = problem(seed, 32, 48)
    d = gram.diagonal().sqrt()
    found = family(name, weight * d)
    admm = Admm(weight, InputNorm(gram))
    keep = admm.choose(found.keep)
    admm.hold(keep)
    assert torch.equal(admm.weight != 0, keep)
    assert int(keep.sum()) == found.density * keep.numel()
    ours = loss(admm.weight, weight, gram)
    for other in (family(name, weight).keep(weight), found.keep(weight * d)):
        fitted = Admm(weight, InputNorm(gram))
        fitted.hold(other)
        assert ours < loss(fitted.weight, weight, gram) < loss(weight * other, weight, gram)


def test_inputs_that_are_always_zero_keep_their_weights():
    """They have no say in the masks of others, and nothing is divided by zero."""
    weight, gram = problem(3)
    gram[5], gram[:, 5] = 0, 0
    keep = torch.ones_like(weight, dtype=torch.bool)
    keep[:, 6] = False
    admm = Admm(weight, InputNorm(gram))
    admm.hold(keep)
    assert relative(admm.weight[:, 5].double(), weight[:, 5]) < 1e-6
    assert bool(torch.isfinite(admm.weight).all())
    nothing = Admm(weight, InputNorm(torch.zeros_like(gram)))
    chosen = nothing.choose(TwoFour().keep)
    assert torch.equal(chosen, TwoFour().keep(weight))
    assert relative(nothing.weight.double(), weight * chosen) < 1e-6


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_levels_are_exact_and_lose_less_than_rounding(bits):
    weight, gram = problem(4, 32, 48)
    d = gram.diagonal().sqrt()
    keep = TwoFour().keep(weight * d)
    levels = Levels.fit(weight * keep, bits)
    admm = Admm(weight, InputNorm(gram))
    admm.hold(keep, levels)
    assert torch.equal(levels.nearest(admm.weight), admm.weight)
    assert not admm.weight[~keep].any()
    assert loss(admm.weight, weight, gram) < loss(levels.nearest(weight * keep), weight, gram)
