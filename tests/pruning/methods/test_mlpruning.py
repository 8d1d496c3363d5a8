"""MLPruning against its formulas, by hand and by a search for the shift of all logits."""

from __future__ import annotations

import math

import pytest
import torch
from support.models import answer, relative
from support.training import classifier, labelled, optimizer, steps

from secateurs import find_sites
from secateurs.pruning.learnable_top_k import LearnableShares, learnable_top_k
from secateurs.pruning.methods.mlpruning import BETAS
from secateurs.pruning.ranking import lowest
from secateurs.pruning.session import Session

STEPS = 20
SIZES = (12, 40, 80)
ALL = "heads=0.25,neurons=0.5,blocks=0.7,block=16"


def test_the_mask_and_its_gradients_by_hand():
    """sigmoid(0.2) of five units left are 2.7, so three stay; the sixth is gone already."""
    scores = torch.tensor([0.1, 0.5, 0.5, -1.0, 0.3, 9.0], requires_grad=True)
    logit = torch.tensor(0.2, requires_grad=True)
    left = torch.tensor([True] * 5 + [False])
    mask = learnable_top_k(scores, logit, left)
    assert mask.tolist() == [0, 1, 1, 0, 1, 0]
    gradient = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    mask.backward(gradient)
    assert scores.grad.tolist() == [1, 2, 4, 8, 16, 0]
    assert float(logit.grad) == 2 + 4 + 16
    few = learnable_top_k(scores, torch.tensor(-20.0), left)
    assert few.tolist() == [0, 1, 0, 0, 0, 0], "one always stays, the first of equals"


def shares(sizes, step=1, seed=0) -> LearnableShares:
    """Shares with scores and logits put in."""
    found = LearnableShares({f"s{i}": (n,) for i, n in enumerate(sizes)}, step, "cpu")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for scores in found.scores:
            scores.copy_(torch.rand(scores.shape, generator=random))
        found.moves.copy_(4.6 + 2 * torch.randn(len(sizes), generator=random))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("kept", [16, 40, 72, 100])
def test_the_lowest_turns_are_what_one_shift_of_all_logits_leaves_out(kept, step, seed):
    found = shares(SIZES, step, seed)
    logits = found.logits().detach().double()
    low, high = -60.0, 60.0
    for _ in range(200):  # the shift at which the masks first hold so many, in steps
        shift = (low + high) / 2
        counts = [
            min(max(math.ceil(float((logit + shift).sigmoid()) * n / step) * step, step), n)
            for logit, n in zip(logits, SIZES, strict=True)
        ]
        low, high = (shift, high) if sum(counts) < kept else (low, shift)
        if sum(counts) == kept:
            break
    assert sum(counts) == kept
    turns = [*found.turns().values()]
    gone = lowest(turns, sum(SIZES) - kept)
    assert [int((~part).sum()) for part in gone] == counts
    for part, scores in zip(gone, found.scores, strict=True):
        if part.any():
            assert float(scores[~part].detach().min()) > float(scores[part].detach().max())


def test_the_penalty_by_hand():
    found = shares((10, 30))
    with torch.no_grad():
        found.moves.copy_(torch.tensor([4.6, 4.6 - math.log(3)]))  # shares of 1/2 and 3/4
    assert float(found.share().detach()) == pytest.approx((5 + 22.5) / 40)
    for target, strength in ((0.4, 0.0), (0.4, 20_000.0), (0.68, 20_000.0), (0.7, 20_000.0)):
        found.target = target
        q = max(0.6875 - target, 0) ** 2
        factor = 10 if q < 3e-4 else max(strength * q / (1 - target) ** 2, 50)
        assert float(found.penalty(strength).detach()) == pytest.approx(factor * q, rel=1e-4)


@pytest.mark.parametrize(("target", "count"), [(0.5, 1000), (0.2, 400)])
def test_a_learning_rate_that_falls_to_zero_reaches_the_share_in_time(target, count):
    """Driven by the penalty alone, over the first two fifths of a training."""
    total = count * 5 // 2
    found = LearnableShares({"a": (12,), "b": (12,)}, 1, "cpu")
    found.begin(target, count, 1e-2 * (1 - count / 2 / total))
    adam = torch.optim.Adam(found.parameters(), lr=1e-2, betas=BETAS)
    for step in range(count):
        adam.param_groups[0]["lr"] = 1e-2 * (1 - step / total)
        found.penalty(20_000.0).backward()
        adam.step()
        adam.zero_grad()
    assert abs(float(found.share().detach()) - target) < 0.01


def test_neurons_that_stay_move_to_the_front_and_the_function_stays():
    model, batch = classifier(), labelled(1)[0]
    with Session(model, "mlpruning", budget=ALL, steps=STEPS) as session:
        pruner = session.pruner
        moved = []
        to_the_front = pruner._to_the_front

        def spy():
            pruner._learning = lambda: []  # blocks are others before and after
            before = answer(model.eval(), batch)
            kept = {n: k.clone() for n, k in pruner._kept.items() if n.endswith("neurons")}
            to_the_front()
            assert relative(answer(model.eval(), batch), before) < 1e-5
            del pruner._learning
            moved.append(kept)

        pruner._to_the_front = spy
        for _ in steps(session, optimizer(session, lr=1e-2), labelled(), STEPS):
            pass
    (kept,) = moved
    assert any(int(keep.nonzero().max()) >= int(keep.sum()) for keep in kept.values())
    for name, before in kept.items():
        keep = session.plan.masks[name].keep
        count = int(keep.sum())
        assert count == int(before.sum())
        assert count % 16 == 0
        assert bool(keep[:count].all())


def test_blocks_of_what_is_gone_are_gone():
    model = classifier()
    sites = find_sites(model)
    with Session(model, "mlpruning", budget=ALL, steps=STEPS) as session:
        for _ in steps(session, optimizer(session), labelled(), STEPS):
            pass
    plan = session.plan
    for index in range(3):
        heads = plan.masks[f"layers.{index}.heads"].keep
        neurons = plan.masks[f"layers.{index}.neurons"].keep.view(-1, 16).any(1)
        assert not bool(plan.masks[f"layers.{index}.value"].keep[~heads].any())
        assert not bool(plan.masks[f"layers.{index}.output"].keep[:, ~heads].any())
        assert not bool(plan.masks[f"layers.{index}.up"].keep[~neurons].any())
    # Blocks that go are of every tile, so density is that of the blocks.
    assert sites.density(plan)["parameters"] == pytest.approx(0.3, abs=0.005)


def test_what_is_learnt_is_the_units_first_and_then_the_blocks():
    with Session(classifier(), "mlpruning", budget=ALL, steps=STEPS) as session:
        pruner, moved = session.pruner, []
        before = [p.detach().clone() for p in pruner.parameter_groups()[0]["params"]]
        for _ in steps(session, optimizer(session), labelled(), STEPS):
            now = [p.detach().clone() for p in pruner.parameter_groups()[0]["params"]]
            changed = [not torch.equal(a, b) for a, b in zip(before, now, strict=True)]
            moved.append((any(changed[:8]), any(changed[8:])))  # 3 sites and the logits, twice
            before = now
    assert moved == [(True, False)] * 8 + [(False, True)] * 6 + [(False, False)] * 6
