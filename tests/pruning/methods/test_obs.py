"""Structured OBS: against least squares that solve each removal from scratch, in float64."""

from __future__ import annotations

from weakref import WeakSet

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_batch, tiny_model

from secateurs import find_sites
from secateurs.errors import MethodError
from secateurs.pruning.activations import reader, units_read
from secateurs.pruning.methods import obs
from secateurs.pruning.methods.obs import Moments, removal_errors
from secateurs.pruning.run import score


def correlated(tokens=400, inputs=12, seed=0):
    """Inputs that depend on each other, `[tokens, inputs]`."""
    random = np.random.default_rng(seed)
    return random.normal(size=(tokens, inputs)) @ random.normal(size=(inputs, inputs))


def greedy(weight, inputs, units, damping):
    """The same order and errors by solving a ridge regression for every candidate of every step."""
    size = weight.shape[1] // units
    moments = inputs.T @ inputs / len(inputs)
    damped = moments + damping * np.diag(moments).mean() * np.eye(len(moments))
    whole, left, errors = np.trace(weight @ moments @ weight.T), set(range(units)), {}

    def error(kept):
        """`min over W' on the kept columns of tr((W - W') damped (W - W')^T)`."""
        columns = [unit * size + i for unit in sorted(kept) for i in range(size)]
        fitted = np.zeros_like(weight)
        if columns:
            solved = np.linalg.solve(damped[np.ix_(columns, columns)], damped[columns] @ weight.T)
            fitted[:, columns] = solved.T
        rest = weight - fitted
        return np.trace(rest @ damped @ rest.T)

    while left:
        costs = {unit: error(left - {unit}) for unit in left}
        unit = min(costs, key=costs.get)
        left -= {unit}
        errors[unit] = costs[unit] / whole
    return np.array([errors[unit] for unit in range(units)])


@pytest.mark.parametrize("units", [12, 4, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_errors_are_those_of_least_squares_at_every_step(units, seed):
    inputs = correlated(seed=seed)
    weight = np.random.default_rng(seed + 7).normal(size=(5, 12))
    moments = torch.from_numpy(inputs.T @ inputs / len(inputs))
    given = removal_errors(torch.from_numpy(weight), moments, units, damping=0.01)
    np.testing.assert_allclose(given, greedy(weight, inputs, units, 0.01), rtol=1e-6)


def test_units_that_go_together_cost_together_what_they_cost_one_by_one():
    inputs, weight = correlated(), np.random.default_rng(7).normal(size=(5, 12))
    moments = torch.from_numpy(inputs.T @ inputs / len(inputs))
    given = removal_errors(torch.from_numpy(weight), moments, 12, damping=0.01, at_once=5)
    # Behind the last unit all is gone, whatever the order was; behind a group, all of the group.
    assert float(given.max()) == pytest.approx(float(greedy(weight, inputs, 12, 0.01).max()))
    first = given.argsort()[:5].tolist()
    left = [unit for unit in range(12) if unit not in first]
    damped = moments.numpy() + 0.01 * np.diag(moments).mean() * np.eye(12)
    fitted = np.zeros_like(weight)
    fitted[:, left] = np.linalg.solve(damped[np.ix_(left, left)], damped[left] @ weight.T).T
    rest = weight - fitted
    want = np.trace(rest @ damped @ rest.T) / np.trace(weight @ moments.numpy() @ weight.T)
    single = (weight**2).sum(0)[first] / np.linalg.inv(damped).diagonal()[first]
    np.testing.assert_allclose(given[first], want * single.cumsum() / single.sum(), rtol=1e-6)


def test_an_input_that_others_repeat_goes_first_and_costs_nothing():
    inputs = correlated(inputs=6)
    inputs[:, 2] = inputs[:, 0] + inputs[:, 5]
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 6)))
    moments = torch.from_numpy(inputs.T @ inputs / len(inputs))
    given = removal_errors(weight, moments, 6, damping=1e-6)
    assert int(given.argmin()) in (0, 2, 5)
    assert float(given.min()) < 1e-4 < float(given.sort().values[1])


def test_constant_inputs_cost_nothing():
    assert (
        removal_errors(torch.ones(3, 4).double(), torch.zeros(4, 4).double(), 4, 0.01).eq(0).all()
    )


def test_moments_are_those_of_all_vectors_in_float64():
    vectors = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    moments = Moments()
    for part in vectors.split(13):
        moments.add(part)
    exact = vectors.double()
    second = exact.T @ exact / 50
    torch.testing.assert_close(moments.covariance(centred=False), second, rtol=1e-6, atol=1e-6)
    centred = torch.from_numpy(np.cov(exact.numpy().T, bias=True))
    torch.testing.assert_close(moments.covariance(centred=True), centred, rtol=1e-6, atol=1e-6)


def test_padding_is_left_out():
    model = tiny_model("bert").eval()
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (4, 6), generator=random)
    real = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {
        name: torch.cat([tensor, torch.zeros(4, 5, dtype=tensor.dtype)], 1)
        for name, tensor in real.items()
    }
    one, two = (
        score(model, [batch], method="obs", budget="heads=0.5,neurons=0.5", progress=False)
        for batch in (real, padded)
    )
    assert one.keys() == {
        f"layers.{i}.{kind}"
        for i in range(len(find_sites(model).layers))
        for kind in ("heads", "neurons")
    }
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "whole t5"])
def test_scores_are_those_of_what_the_whole_model_hands_on(family, monkeypatch):
    model = tiny_model(family)
    sites, batches = find_sites(model), [tiny_batch(model, seed=seed) for seed in range(3)]
    at_once, alive = [0], WeakSet()

    class Counted(Moments):
        def add(self, vectors):
            super().add(vectors)
            alive.add(self)
            at_once[0] = max(at_once[0], len(alive))

    monkeypatch.setattr(obs, "Moments", Counted)
    given = score(model, batches, method="obs", budget="heads=0.5,neurons=0.5", progress=False)
    monkeypatch.undo()
    # A sub-layer of heads and one of neurons; of two stacks all.
    assert at_once[0] == (2 if family != "whole t5" else len(given))
    gathered = {name: Moments() for name in given}
    with torch.no_grad():
        for batch in batches:
            with units_read(
                model, sites, given, batch, lambda name, vectors: gathered[name].add(vectors)
            ):
                model(**batch)
    for name, errors in given.items():
        view = reader(model, sites, name)
        moments = gathered[name].covariance(centred=view.bias is not None)
        expected = removal_errors(
            view.weight.detach().double(), moments, len(errors), 0.01, max(1, len(errors) // 96)
        )
        torch.testing.assert_close(errors, expected)


def test_a_damping_of_nothing_is_refused():
    with pytest.raises(MethodError, match="damping above 0"):
        score(tiny_model("bert"), [], method="obs", budget="heads=0.5", damping=0.0)
