"""Sensitivity allocation against its formulas, by hand and by a search for gamma."""

from __future__ import annotations

import math

import pytest
import torch
from support.models import answer, relative
from support.training import classifier, labelled, optimizer, steps, trained

from secateurs import Budget, apply, find_sites
from secateurs.pruning.methods.sensi_bert import SensiBertPruner, sensitivity_of, turns
from secateurs.pruning.session import Session

STEPS = 20


def started(budget: str, **options) -> SensiBertPruner:
    """A pruner with sensitivities put in, from a training that never was."""
    pruner, model = SensiBertPruner(**options), classifier()
    pruner.start(model, find_sites(model), Budget.parse(budget), seed=0)
    random = torch.Generator().manual_seed(5)
    for i, (name, shape) in enumerate(pruner.units().items()):
        pruner._masks[name] = torch.nn.Parameter(torch.ones(shape))
        pruner._sensitivity[name] = torch.rand(shape, generator=random) * (1 + i % 3) ** 2
    return pruner


def searched(pruner: SensiBertPruner, kind: str, kept: int, alpha: float) -> dict[str, int]:
    """How many units each layer keeps at the gamma, found by bisection, that keeps so many."""
    units = {n: s.double() for n, s in pruner._sensitivity.items() if n.endswith(kind)}
    top = {n: s.sort(descending=True).values[: math.ceil(len(s) / 5)] for n, s in units.items()}
    sigma = {n: float(s.mean()) for n, s in top.items()}
    largest, low, high = max(sigma.values()), 0.0, 1e3
    for _ in range(200):
        gamma = (low + high) / 2
        counts = {}
        for name, s in units.items():
            share = gamma * (sigma[name] / largest) ** alpha
            least = 1 if kind == "heads" else math.ceil(len(s) / 10)
            counts[name] = min(max(math.floor(share * len(s) + 0.5), least), len(s))
        total = sum(counts.values())
        if total == kept:
            return counts
        low, high = (gamma, high) if total < kept else (low, gamma)
    raise AssertionError("no gamma keeps so many")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gone", [0.3, 0.5, 0.8])
def test_layers_keep_what_a_search_for_gamma_lets_them(gone, alpha):
    pruner = started(f"neurons={gone}", alpha=alpha)
    got = {name: int(mask.keep.sum()) for name, mask in pruner.plan().masks.items()}
    total = 3 * 96
    if alpha:
        assert got == searched(pruner, "neurons", total - math.floor(gone * total + 0.5), alpha)
        assert len(set(got.values())) > 1
    else:
        assert max(got.values()) - min(got.values()) <= 1
    assert sum(got.values()) == total - math.floor(gone * total + 0.5)


def test_the_turns_of_a_small_case_by_hand():
    """Ranks 2, 1 and 3 of a share of 1/2, of which one unit is safe."""
    got = turns(torch.tensor([3.0, 4.0, 1.0]), 0.5, floor=1, most=5)
    assert got.tolist() == pytest.approx([1.5 / 1.5, 1.5 / 0.5 + 10, 1.5 / 2.5])
    assert sensitivity_of(torch.arange(10.0)) == 8.5
    assert sensitivity_of(torch.tensor([2.0, 7.0])) == 7


def test_each_layer_keeps_a_head_and_a_tenth_of_its_neurons():
    pruner = started("heads=0.7,neurons=0.85", alpha=8.0)
    for name, mask in pruner.plan().masks.items():
        assert int(mask.keep.sum()) >= (1 if name.endswith("heads") else 10), name


def test_what_stays_in_a_layer_is_what_ranks_highest_there():
    pruner = started("neurons=0.5")
    for name, mask in pruner.plan().masks.items():
        s = pruner._sensitivity[name]
        assert float(s[mask.keep].min()) >= float(s[~mask.keep].max())


def test_the_sensitivity_is_of_the_loss_and_the_penalty_is_not_in_it():
    model, batch = classifier().eval(), labelled(1)[0]
    with Session(model, "sensi_bert", budget="heads=0.5", steps=STEPS, penalty=3.0) as session:
        pruner = session.pruner
        name = "layers.1.heads"
        with torch.no_grad():
            pruner._masks[name].copy_(torch.tensor([0.5, 1.0, -2.0, 1.0]))
        losses = []
        for sign in (1, -1):  # a central difference at the mask's third entry
            with torch.no_grad():
                pruner._masks[name][2] += sign * 1e-2
                losses.append(float(model.double()(**batch).loss))
                pruner._masks[name][2] -= sign * 1e-2
        model.float()
        derivative = (losses[0] - losses[1]) / 2e-2
        (model(**batch).loss + session.penalty()).backward()
        session.after_backward()
        got = float(pruner._sensitivity[name][2])
        assert got == pytest.approx(0.01 * abs(-2.0 * derivative), rel=1e-2)
        # Three layers of 4 heads that cost the same: the penalty's gradient is 3 / 12 a head.
        grown = float(pruner._masks[name].grad[2])
        assert grown - derivative == pytest.approx(-0.25, rel=1e-2)
        session.after_step()


def test_masks_are_folded_and_units_go_in_rounds():
    model, batch = classifier(), labelled(1)[0]
    with Session(model, "sensi_bert", budget="heads=0.5", steps=STEPS, lr=0.1) as session:
        alive, spread = [], []
        for i in steps(session, optimizer(session), labelled(), STEPS):
            gates = torch.cat([session.pruner.gates[f"layers.{n}.heads"] for n in range(3)])
            alive.append(int((gates != 0).sum()))
            spread.append(float((gates.detach() - 1).abs().max()))
            if i == 2:
                before = answer(model.eval(), batch)
                folded = {n: m.detach().clone() for n, m in session.pruner._masks.items()}
                session.pruner._fold()
                assert relative(answer(model, batch), before) < 1e-5
                assert any(bool((m != 1).any()) for m in folded.values())
    assert max(spread[:3]) > 0.01
    assert alive == [12] * 5 + [10] * 2 + [8] * 2 + [6] * 11


def test_a_budget_of_parameters_is_met():
    model = classifier()
    with Session(model, "sensi_bert", budget="parameters=0.4", steps=STEPS) as session:
        trained(session, STEPS)
        model.eval()
        gated = answer(model, labelled(1)[0])
    density = find_sites(model).density(session.plan)["parameters"]
    assert 0.55 < density <= 0.6
    assert relative(gated, answer(apply(model, session.plan), labelled(1)[0])) < 1e-5


def test_the_controls_change_one_thing_each():
    """Magnitude keeps the counts of each layer, the allocator `per_layer` keeps the order."""
    pruner = started("neurons=0.5")
    own = pruner.plan().masks
    by_size = started("neurons=0.5", order="magnitude").plan().masks
    assert all(int(own[n].keep.sum()) == int(by_size[n].keep.sum()) for n in own)
    assert any(not torch.equal(own[n].keep, by_size[n].keep) for n in own)
    with Session(
        classifier(), "sensi_bert", budget="neurons=0.5", steps=STEPS, allocator="per_layer"
    ) as session:
        trained(session, STEPS)
    assert {int(mask.keep.sum()) for mask in session.plan.masks.values()} == {48}
