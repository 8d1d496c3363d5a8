"""PLATON against its formula, step by step in float64, and weights that return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import classifier, labelled, optimizer, steps

from secateurs.errors import MethodError
from secateurs.pruning.methods.platon import ImportanceBound
from secateurs.pruning.session import Session

QUERY = "layers.1.query"
TOTAL = 3 * (4 * 64 * 64 + 2 * 64 * 96)


def oracle(gradients, weights, window, a, b):
    """S after each step, from gradients and post-step weights: windows as plain means."""
    sensitivities = np.abs(gradients * weights)
    m = u = np.zeros_like(gradients[0])
    found = []
    for t in range(len(sensitivities)):
        if t and t % window == 0:
            mean = sensitivities[t - window : t].mean(0)
            m = a * m + (1 - a) * mean
            u = b * u + (1 - b) * np.abs(mean - m)
        found.append(m if b == 1 else m * u)
    return found


@pytest.mark.parametrize(("window", "b"), [(1, 0.9), (3, 0.9), (3, 1.0)])
def test_the_score_is_that_of_the_formula(window, b):
    random = np.random.default_rng(0)
    gradients, weights = random.normal(size=(2, 11, 5, 3))
    got, count = ImportanceBound(torch.zeros(5, 3), 0.8, b), 0
    for g, w, want in zip(
        gradients, weights, oracle(gradients, weights, window, 0.8, b), strict=True
    ):
        if count == window:
            got.end_window()
            count = 0
        got.read(torch.tensor(w), torch.tensor(g), count)
        count += 1
        np.testing.assert_allclose(got.score().numpy(), want, rtol=1e-5, atol=1e-12)


def test_a_session_reads_the_weight_after_the_step_and_the_gradient_before_it():
    """Windows of two steps in a session of twelve, against the plain means."""
    gradients, weights, scores = [], [], {}
    with Session(
        classifier(), "platon", budget="weights=0.5", steps=12, window=2, end=1.0
    ) as session:
        weight = session.pruner.linear_weights()[QUERY]
        adam = optimizer(session)
        after_step = session.pruner.after_step

        def spy(step):
            gradients.append(weight.grad.double().numpy().copy())
            weights.append(weight.detach().double().numpy().copy())
            after_step(step)
            if session.pruner._windows >= 2:
                scores[step] = session.pruner.scores()[QUERY].double().numpy().copy()

        session.pruner.after_step = spy
        for _ in steps(session, adam, labelled(), 11):
            pass
        del session.pruner.after_step
    want = oracle(np.stack(gradients), np.stack(weights), 2, 0.85, 0.85)
    assert [*scores] == [*range(4, 11)]
    for step, score in scores.items():
        np.testing.assert_allclose(score, want[step], rtol=1e-4, atol=1e-20)


def test_weights_go_to_zero_by_the_schedule_and_some_return():
    """Zeros are set in place once a window, on a cubic schedule, and no gate shuts before its
    end."""
    count, zeros, revived = 40, {}, []
    model = classifier()
    with Session(model, "platon", budget="weights=0.7", steps=count, window=3) as session:
        pruner = session.pruner
        for i in steps(session, optimizer(session, lr=1e-2), labelled(), count):
            weights = torch.cat([w.flatten() for w in pruner.linear_weights().values()])
            zeros[i + 1] = int((weights == 0).sum())
            revived.append(pruner.figures()["revived"])
            assert bool(len(pruner.gates)) == (i + 1 >= 29)
    for done in range(7, 29):
        if (done - 1) % 3 == 0:
            share = 0.7 * (1 - (1 - (done - 6) / 23) ** 3)
            assert zeros[done] == int(share * TOTAL + 0.5), done
        else:
            assert zeros[done] < TOTAL / 10, "what is zero moves on"
    assert max(revived) > 0
    assert not any(zeros[done] for done in range(1, 7))


def test_the_score_rewards_what_is_important_or_uncertain():
    """A steady weight and one that is twice as important every other time, against a small one."""
    bound = ImportanceBound(torch.zeros(3), 0.85, 0.85)
    for t in range(40):
        gradient = torch.tensor([1.0, 2.0 * (t % 2), 0.1])
        bound.end_window()
        bound.read(torch.ones(3), gradient, 0)
    steady, spiky, small = bound.score().tolist()
    assert spiky > steady > small


def test_a_plan_before_two_windows_is_refused():
    with (
        pytest.raises(MethodError, match="expects 2 windows of 10 steps before it decides, got 0"),
        Session(classifier(), "platon", budget="weights=0.7", steps=600) as session,
    ):
        for _ in steps(session, optimizer(session), labelled(), 3):
            pass


def test_block_scores_are_sums_of_what_the_block_holds():
    with Session(
        classifier(), "platon", budget="blocks=0.5,block=16", steps=12, end=1.0
    ) as session:
        for _ in steps(session, optimizer(session), labelled(), 6):
            pass
        pruner = session.pruner
        got, whole = pruner.scores()[QUERY], pruner.weight_scores()[QUERY]
    assert got.shape == (4, 4)
    assert float(got[1, 2]) == pytest.approx(float(whole[16:32, 32:48].sum()), rel=1e-5)
