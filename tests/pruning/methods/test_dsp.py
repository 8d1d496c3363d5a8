"""DSP's relaxed choice, and its rival's gates, against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.training import classifier, labelled, optimizer, steps

from secateurs.errors import MethodError
from secateurs.pruning.methods.dsp import gumbel, relaxed_top_k
from secateurs.pruning.methods.voita import expected_open, hard_concrete
from secateurs.pruning.session import Session


def oracle_top_k(scores, k, t):
    """k softmaxes, one after the other, each on what the last ones left."""
    r, chosen = np.array(scores, dtype=np.float64), 0.0
    for _ in range(k):
        e = np.exp(r / t - np.max(r / t))
        p = e / e.sum()
        chosen = chosen + p
        r = r + np.log(np.maximum(1 - p, np.finfo(np.float64).tiny))
    return chosen


@pytest.mark.parametrize("t", [1000.0, 1.0, 0.1])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_the_relaxed_choice_is_that_of_the_formula_and_sums_to_k(t, k):
    scores = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    got = relaxed_top_k(scores, k, t)
    np.testing.assert_allclose(got.numpy(), oracle_top_k(scores.numpy(), k, t), rtol=1e-9)
    assert float(got.sum()) == pytest.approx(k)


def test_it_anneals_to_the_hard_choice_without_nan():
    scores = torch.randn(144, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in (12, 72, 143):
        for t in (1e-3, 1e-8):
            gates = relaxed_top_k(scores.requires_grad_(), k, t)
            assert torch.isfinite(gates).all()
            gates.sum().backward()
            assert torch.isfinite(scores.grad).all()
        want = torch.zeros(144, dtype=torch.float64)
        want[scores.topk(k).indices] = 1
        torch.testing.assert_close(gates, want, rtol=0, atol=1e-9)


def test_its_gradient_is_that_of_finite_differences():
    scores = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(
        lambda r: relaxed_top_k(r, 3, 0.7), scores.clone().requires_grad_()
    )


def test_choices_that_cannot_be_made_are_refused():
    scores = torch.zeros(4, dtype=torch.float64)
    for k in (0, 5):
        with pytest.raises(MethodError, match=f"between 1 and 4, got {k}"):
            relaxed_top_k(scores, k, 1.0)
    with pytest.raises(MethodError, match="in float64, got"):
        relaxed_top_k(scores.float(), 2, 1.0)


def test_the_noise_is_gumbel():
    noise = gumbel((200_000,), torch.Generator().manual_seed(0))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_two_steps_by_hand():
    """Importances, noise, gates and the temperature of the first two steps of a session."""
    with Session(classifier(), "dsp", budget="heads=0.5", steps=20, seed=5, t0=10, t1=0.1) as run:
        random = torch.Generator().manual_seed(5)
        bound = math.sqrt(6 / (3 + 4))
        start = (2 * torch.rand(12, generator=random, dtype=torch.float64) - 1) * bound
        torch.testing.assert_close(run.pruner.importance.detach(), start)
        cooldown = round(20 * 2 / 3)
        for i in steps(run, optimizer(run), labelled(), 2):
            uniform = torch.rand(12, generator=random, dtype=torch.float64)
            r = start - (-uniform.log()).log()
            want = oracle_top_k(r.numpy(), 6, 10 * 0.01 ** (i / cooldown))
            got = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)])
            np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9)
            start = run.pruner.importance.detach().clone()
        run.model.eval()
        run.model(**labelled(1)[0])
        hard = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)])
        assert set(hard.tolist()) == {0.0, 1.0}
        assert hard.sum() == 6
        assert set(hard.nonzero()[:, 0].tolist()) == set(start.topk(6).indices.tolist())


def test_the_gates_are_hard_before_training_ends():
    with Session(classifier(), "dsp", budget="heads=0.75", steps=20) as run:
        for i in steps(run, optimizer(run), labelled(), 20):
            gates = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)]).detach()
            assert float(gates.sum()) == pytest.approx(3)
            if i >= 14:
                assert ((gates < 1e-6) | ((gates - 1).abs() < 1e-6)).all()
                assert run.pruner.figures()["temperature"] == 1e-8


def test_straight_through_is_hard_forward_and_soft_backward():
    options = {"straight_through": True}
    with Session(classifier(), "dsp", budget="heads=0.5", steps=9, **options) as run:
        run.model.train()
        run.model(**labelled(1)[0]).loss.backward()
        gates = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)])
        assert sorted(gates.tolist()) == [0.0] * 6 + [1.0] * 6
        assert bool((run.pruner.importance.grad != 0).all())


def test_a_head_that_hurts_is_not_chosen():
    """A loss that punishes one head's gate alone: its importance must fall."""
    with Session(classifier(), "dsp", budget="heads=0.25", steps=60, pipelined=True) as run:
        adam = optimizer(run)
        for _ in range(60):
            run.model.train()
            run.model(**labelled(1)[0])
            run.pruner.gates["layers.1.heads"][2].backward()
            run.after_backward()
            adam.step()
            run.after_step()
            adam.zero_grad()
        assert int(run.pruner.importance.argmin()) == 6
    assert not run.plan.masks["layers.1.heads"].keep[2]


def test_hard_concrete_gates_open_as_often_as_expected():
    random = torch.Generator().manual_seed(0)
    for location in (-2.0, -0.3, 0.0, 1.5):
        uniform = torch.rand(200_000, generator=random)
        gates = hard_concrete(torch.full_like(uniform, location), uniform)
        assert float(gates.min()) >= 0
        assert float(gates.max()) <= 1
        want = float(expected_open(torch.tensor(location)))
        assert float((gates > 0).float().mean()) == pytest.approx(want, abs=0.005)


def test_hard_concrete_by_hand():
    """u = 1/2 has no noise: z = clip(1.2 sigmoid(a / 0.33) - 0.1)."""
    a = torch.tensor([-1.0, 0.0, 0.2, 5.0])
    got = hard_concrete(a, torch.full((4,), 0.5))
    want = [min(1, max(0, 1.2 / (1 + math.exp(-x / 0.33)) - 0.1)) for x in a.tolist()]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5)
    assert float(expected_open(torch.tensor(0.0))) == pytest.approx(
        1 / (1 + math.exp(0.33 * math.log(0.1 / 1.1))), rel=1e-6
    )


def test_the_penalty_closes_gates():
    with Session(classifier(), "voita", budget="heads=0.5", steps=30, penalty=10.0) as run:
        first = run.pruner.figures()["expected_heads"]
        for _ in steps(run, optimizer(run), labelled(), 30):
            pass
        assert run.pruner.figures()["expected_heads"] < 0.5 * first
