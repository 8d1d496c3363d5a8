"""DSP's relaxed choice, and its rival's gates, against their formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from support.training import classifier, labelled, optimizer, steps, trainer, without_dropout

from secateurs import find_sites
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.pruning.methods.dsp import gumbel, relaxed_top_k, start_from
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
    options = {"schedule": "published", "t0": 10, "t1": 0.1, "seed": 5}
    with Session(classifier(), "dsp", budget="heads=0.5", steps=20, **options) as run:
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
    options = {"schedule": "published"}
    with Session(classifier(), "dsp", budget="heads=0.75", steps=20, **options) as run:
        for i in steps(run, optimizer(run), labelled(), 20):
            gates = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)]).detach()
            assert float(gates.sum()) == pytest.approx(3)
            if i >= 14:
                assert ((gates < 1e-6) | ((gates - 1).abs() < 1e-6)).all()
                assert run.pruner.figures()["temperature"] == 1e-8


def sensitivities(model, batch):
    """Sums over the examples of |d of the batch's mean loss / d gate|, by gates of float64 models,
    one central difference for each head and example."""
    model = copy.deepcopy(model).double().eval()
    sites, examples, step = find_sites(model), len(batch["labels"]), 1e-5

    def loss(layer, head, example, change):
        with Gates(model, sites) as gates, torch.no_grad():
            gate = torch.ones(examples, 4, dtype=torch.float64)
            gate[example, head] += change
            gates[f"layers.{layer}.heads"] = gate
            return float(model(**batch).loss)

    return np.array([
        sum(abs(loss(i, h, e, step) - loss(i, h, e, -step)) for e in range(examples)) / (2 * step)
        for i in range(3) for h in range(4)
    ])  # fmt: skip


def test_a_short_training_begins_with_what_its_first_tenth_says():
    """Importances by finite differences of single examples; the model itself stands still."""
    model, batches = without_dropout(classifier()), labelled(2)
    sums = sum(sensitivities(model, batch) for batch in batches)
    logarithms = np.log(sums)
    want = 2 * (logarithms - logarithms.mean()) / logarithms.std()
    with Session(model, "dsp", budget="heads=0.5", steps=20) as run:
        adam = torch.optim.AdamW(run.parameter_groups(lr=0.0), weight_decay=0.0)
        assert adam.param_groups[1]["lr"] == 0.5  # 15 / (13 - 2), but 0.5 at most
        for i in steps(run, adam, batches, 2):
            gates = run.pruner.gates["layers.0.heads"]
            assert gates.shape == (4, 4), f"step {i} measures each example"
            assert bool((gates == 1).all())
        np.testing.assert_allclose(run.pruner.importance.detach().numpy(), want, rtol=1e-3)


def test_the_short_schedule_by_hand():
    """Temperature, noise and gates of every step; frozen and hard once it is over."""
    with Session(classifier(), "dsp", budget="heads=0.75", steps=100, seed=5) as run:
        random = torch.Generator().manual_seed(5)
        torch.rand(12, generator=random, dtype=torch.float64)  # of the start, which is not used
        adam = optimizer(run)
        assert adam.param_groups[1]["lr"] == pytest.approx(15 / (67 - 10))
        before, frozen = None, None
        for i in steps(run, adam, labelled(), 70):
            got = torch.cat([run.pruner.gates[f"layers.{n}.heads"] for n in range(3)], -1).detach()
            if 10 <= i < 67:
                uniform = torch.rand(12, generator=random, dtype=torch.float64)
                left = 1 - (i - 10) / 57
                r = before - left * (-uniform.log()).log()
                want = oracle_top_k(r.numpy(), 3, 0.05 ** (1 - left))
                np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-12)
            elif i >= 67:
                assert set(got.tolist()) == {0.0, 1.0}
                assert set(got.nonzero()[:, 0].tolist()) == set(before.topk(3).indices.tolist())
                frozen = before if frozen is None else frozen
                assert torch.equal(run.pruner.importance.detach(), frozen)
            before = run.pruner.importance.detach().clone()


def test_which_schedule_a_training_takes():
    for steps_, options, temperature, rate in (
        (4999, {}, 1.0, 0.02),
        (5000, {}, 1000.0, 0.5),
        (5000, {"schedule": "short"}, 1.0, 0.02),
        (300, {"schedule": "published"}, 1000.0, 0.5),
        (300, {"t0": 3.0}, 3.0, 15 / (200 - 30)),
        (300, {"lr": 0.1}, 1.0, 0.1),
        (300, {"straight_through": True}, 1.0, 0.5),
    ):
        with Session(classifier(), "dsp", budget="heads=0.5", steps=steps_, **options) as run:
            assert run.pruner.figures()["temperature"] == temperature
            assert run.parameter_groups()[1]["lr"] == pytest.approx(rate)


def test_a_head_without_gradient_is_as_good_as_nothing():
    """Neither infinite nor so far below the others that they are all alike."""
    start = start_from(torch.tensor([0.0, 1e-9, 1e-6, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(start.numpy(), 2 * np.array([-1, -1, -1, 3]) / math.sqrt(3))
    for alike in (0.0, 2.0):
        assert start_from(torch.full((5,), alike).double()).tolist() == [0.0] * 5


def test_inputs_that_are_not_named_are_refused():
    with Session(classifier(), "dsp", budget="heads=0.5", steps=20) as run:
        run.model.train()
        with pytest.raises(MethodError, match="inputs by name"):
            run.model(labelled(1)[0]["input_ids"])


def test_micro_batches_and_left_out_steps_are_measured_as_the_weights_see_them():
    """Two halves of a batch count as the batch; a step without finite gradients not at all."""
    (batch,) = labelled(1)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    starts = []
    for parts, overflow in (([batch], False), (halves, False), ([batch], True)):
        model = without_dropout(classifier()).train()
        with Session(model, "dsp", budget="heads=0.5", steps=20) as run:
            adam = torch.optim.SGD(run.parameter_groups(lr=0.0))
            for left_out in [True] * overflow + [False]:
                for part in parts:
                    (model(**part).loss / len(parts)).backward()
                if left_out:
                    next(model.parameters()).grad.fill_(torch.inf)
                run.after_backward()
                adam.step()
                run.after_step()
                adam.zero_grad()
            starts.append(run.pruner.importance.detach().clone())
    torch.testing.assert_close(starts[1], starts[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(starts[2], starts[0])


def test_groups_taken_before_the_steps_are_known_are_refused():
    with Session(classifier(), "dsp", budget="heads=0.5") as run:
        run.parameter_groups()
        with pytest.raises(MethodError, match="steps before parameter_groups"):
            run.begin(300)
    with Session(classifier(), "dsp", budget="heads=0.5", lr=0.1) as run:
        run.parameter_groups()
        run.begin(300)


def test_the_trainer_gives_the_rate_that_follows_from_its_steps(tmp_path):
    model = classifier()
    with Session(model, "dsp", budget="heads=0.5", cooldown=55) as run:
        trained = trainer(model, tmp_path, run, max_steps=60, lr_scheduler_type="constant")
        trained.train()
        (rate,) = (
            group["lr"]
            for group in trained.optimizer.param_groups
            if group["params"][0] is run.pruner.importance
        )
        assert rate == pytest.approx(15 / (55 - 6))


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
    options = {"schedule": "published", "pipelined": True}
    with Session(classifier(), "dsp", budget="heads=0.25", steps=60, **options) as run:
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
