"""Gradual magnitude pruning against a ranking in numpy, mask by mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import classifier, labelled, optimizer, steps

from secateurs.pruning.session import Session

TOTAL = 3 * (4 * 64 * 64 + 2 * 64 * 96)
COUNT, EVERY = 40, 3
MASKS = [*(step for step in range(5, 28) if step % EVERY == 0), 28]  # from a tenth to seven tenths


def flat(tensors):
    return torch.cat([tensors[name].detach().flatten() for name in sorted(tensors)]).numpy()


def test_the_smallest_weights_go_by_the_schedule():
    """As many as the cubic schedule says, at the steps of a mask alone: those of the least size at
    that time, over the whole model, what is masked with the value that it keeps."""
    with Session(
        classifier(), "gradual_magnitude", budget="weights=0.7", steps=COUNT, every=EVERY
    ) as session:
        pruner, before = session.pruner, np.ones(TOTAL)
        for step in steps(session, optimizer(session, lr=1e-2), labelled(), COUNT):
            done = step + 1
            if done < MASKS[0]:
                assert not len(pruner.gates)
                continue
            gates = flat(dict(pruner.gates))
            if done in MASKS:
                share = 0.7 * (1 - (1 - (done - 4) / 24) ** 3)
                gone = int(share * TOTAL + 0.5)
                size = np.abs(flat(pruner.linear_weights()).astype(np.float64))
                order = np.argsort(size, kind="stable")
                assert set(np.flatnonzero(gates == 0)) == set(order[:gone])
            else:
                np.testing.assert_array_equal(gates, before)
            before = gates
        plan = session.current_plan()
    kept = {name: mask.elements() for name, mask in plan.masks.items()}
    np.testing.assert_array_equal(flat(kept), before.astype(bool))
    assert before.sum() == TOTAL - int(0.7 * TOTAL + 0.5)


def test_what_is_masked_learns_nothing():
    """Without momentum it keeps its value from its mask on."""
    with Session(classifier(), "gradual_magnitude", budget="weights=0.5", steps=20) as session:
        pruner = session.pruner
        before, gone = flat(pruner.linear_weights()), np.zeros(TOTAL, bool)
        plain = torch.optim.SGD(session.parameter_groups(lr=0.1))
        for _ in steps(session, plain, labelled(), 20):
            now = flat(pruner.linear_weights())
            np.testing.assert_array_equal(now[gone], before[gone])
            assert (now != before)[~gone].mean() > 0.9
            before, gates = now, dict(pruner.gates)
            gone = flat(gates) == 0 if gates else gone
    assert gone.mean() == 0.5


@pytest.mark.parametrize("budget", ["blocks=0.75,block=16x32", "patterns=0.5,vector=8"])
def test_units_of_several_weights_go_by_their_sums_of_squares(budget):
    with Session(classifier(), "gradual_magnitude", budget=budget, steps=20, every=1) as session:
        pruner = session.pruner
        for step in steps(session, optimizer(session), labelled(), 14):
            if step + 1 == 14:
                squares = {n: w.double().square() for n, w in pruner.linear_weights().items()}
        gates = dict(pruner.gates)
    if "patterns" in budget:
        for name, gate in gates.items():
            groups = squares[name].view(-1, 8, squares[name].shape[1] // 4, 4).sum(1)
            stays = gate.view(-1, 8, gate.shape[1] // 4, 4)[:, 0].bool()
            assert stays.sum(-1).unique().tolist() == [2]
            least = torch.where(stays, groups, torch.inf).amin(-1)
            assert bool((least >= torch.where(stays, -torch.inf, groups).amax(-1)).all())
        return
    sums, stays = [], []
    for name, gate in gates.items():
        tiles = squares[name].view(-1, 16, gate.shape[1] // 32, 32).sum((1, 3))
        sums.append(tiles.flatten())
        stays.append(gate.view(-1, 16, gate.shape[1] // 32, 32)[:, 0, :, 0].flatten().bool())
    sums, stays = torch.cat(sums), torch.cat(stays)
    assert int(stays.sum()) == round(0.25 * TOTAL / 512)
    assert bool(sums[stays].min() >= sums[~stays].max())
