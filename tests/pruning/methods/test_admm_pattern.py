"""ADMM's steps are those of the formulas, and its residual falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from support.training import classifier, interrupted, labelled, optimizer, steps, trained
from torch import nn

from secateurs import PatternMask, SparsityPlan, apply, convert, find_sites, load, save
from secateurs.plan.quantization import Levels
from secateurs.pruning.session import Session

PATTERNS = {
    "vector": "patterns=0.5,vector=16",
    "2:4": "patterns=0.5,pattern=2:4",
    "library": "patterns=0.5,pattern=library",
}


def nearest_vector(weight, vector):
    """2 of every 4 inputs for each group of outputs, by trying all six."""
    out = np.zeros_like(weight)
    for i, j in itertools.product(range(0, len(weight), vector), range(0, weight.shape[1], 4)):
        tile = weight[i : i + vector, j : j + 4]
        best = max(itertools.combinations(range(4), 2), key=lambda c: (tile[:, c] ** 2).sum())
        out[i : i + vector, j + best[0]] = tile[:, best[0]]
        out[i : i + vector, j + best[1]] = tile[:, best[1]]
    return out


def test_two_updates_by_hand():
    """Z, U, rho and W of two updates, two steps before each, nothing but the pull moving the
    weights. U takes as large a part of its step as W could go of its way."""
    model = classifier()
    name = "layers.1.up"
    w = find_sites(model).linear(model, 1, "up").weight.detach().double().numpy()
    options = {"stages": 2, "updates": 1, "share": 1.0, "rho": 0.5}
    with Session(model, "admm_pattern", budget=PATTERNS["vector"], steps=4, **options) as session:
        pruner = session.pruner
        z, u, rho, way = nearest_vector(w, 16), np.zeros_like(w), 0.5, 0.0
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        weight = linears(model)[name].weight
        for i, _ in enumerate(steps(session, still, labelled(), 4)):
            w, way = least(w, z - u, rho), float(least(way, 1.0, rho))
            if i % 2:
                after = min(rho * 10, 5.0)
                z = nearest_vector(w + u, 16)
                u = (u + way * (w - z)) * rho / after
                rho, way = after, 0.0
            np.testing.assert_allclose(weight.detach().numpy(), w, atol=1e-6)
            np.testing.assert_allclose(pruner._z[name].numpy(), z, atol=1e-6)
            np.testing.assert_allclose(pruner._u[name].numpy(), u, atol=1e-6)
            assert pruner.figures()["rho"] == rho
        residual = max(
            float((s.weight - pruner._z[n]).detach().norm() / s.weight.detach().norm())
            for n, s in linears(model).items()
        )
        assert pruner.figures()["residual"] == pytest.approx(residual, rel=1e-5)


def test_weights_that_cannot_move_keep_their_pattern():
    """Else U, with what W was not given the time to do, would outgrow W and turn the choice."""
    model = classifier()
    before = {
        n: nearest_vector(m.weight.detach().double().numpy(), 16) for n, m in linears(model).items()
    }
    options = {"rho": 1e-9, "stages": 1, "updates": 12, "share": 1.0}
    with Session(model, "admm_pattern", budget=PATTERNS["vector"], steps=24, **options) as session:
        trained(session, 24, lr=0.0)
        for name, z in session.pruner._z.items():
            np.testing.assert_allclose(z.numpy(), before[name], atol=1e-6)


def linears(model) -> dict[str, nn.Module]:
    sites = find_sites(model)
    return {
        s.name: sites.linear(model, s.layer, s.name.split(".")[2]) for s in sites.of_kind("linear")
    }


def least(w, target, rho):
    """Where rho/2 (x - target)^2 + 1/2 (x - w)^2 is least: the mean of both, rho to 1."""
    return np.average(np.stack([w, target]), axis=0, weights=[1.0, rho])


def test_the_pull_is_to_the_minimum_of_the_squared_distances():
    model = classifier()
    budget = PATTERNS["2:4"]
    with Session(model, "admm_pattern", budget=budget, steps=60, rho=0.25) as session:
        for name, u in session.pruner._u.items():
            u.normal_(generator=torch.Generator().manual_seed(len(name)))
        z, u = session.pruner._z, session.pruner._u
        want = {
            n: least(m.weight.detach().double().numpy(), (z[n] - u[n]).double().numpy(), 0.25)
            for n, m in linears(model).items()
        }
        assert session.penalty() == 0.0
        trained(session, 1, lr=0.0)
        for name, linear in linears(model).items():
            np.testing.assert_allclose(linear.weight.detach().numpy(), want[name], atol=1e-5)
        trained(session, 59, lr=0.0)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_residual_falls_until_the_pattern_holds_almost_by_itself(pattern):
    """With the loss left out and a strong pull the weights must walk into the set."""
    model, residuals = classifier(), []
    options = {"rho": 0.25, "stages": 1, "updates": 30, "share": 1.0}
    with Session(model, "admm_pattern", budget=PATTERNS[pattern], steps=120, **options) as session:
        for _ in range(120):
            session.after_backward()
            session.after_step()
            residuals.append(session.pruner.figures()["residual"])
            if session.pruner._imposed:
                break
    known = [r for r in residuals if r < float("inf")]
    assert known[-1] < 0.01 < 0.1 < known[0]
    assert len(residuals) < 120, "the pattern is imposed as soon as it almost holds"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_plans_convert_and_merge_and_survive_saving(pattern, tmp_path):
    model, batch = classifier(), labelled(1)[0]
    with Session(model, "admm_pattern", budget=PATTERNS[pattern], steps=12) as session:
        trained(session, 12)
        model.eval()
        gated = answer(model, batch)
    plan = session.plan
    assert all(isinstance(mask, PatternMask) for mask in plan.masks.values())
    want = answer(apply(model, plan), batch)
    assert relative(gated, want) < 1e-5
    assert relative(answer(convert(model, plan), batch), want) < 1e-5
    plan.save(tmp_path / "plan")
    loaded = SparsityPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert plan.merge(loaded) == plan
    if pattern == "library":
        for mask in plan.masks.values():
            n, k = mask.keep.shape
            tiles = mask.keep.view(n // 4, 4, k // 4, 4).transpose(1, 2).flatten(2)
            assert len({tuple(t) for t in tiles.flatten(0, 1).tolist()}) <= 16
            assert set(tiles.sum(-1).flatten().tolist()) == {8}


def test_straight_through_lets_the_pattern_change_and_frozen_does_not():
    def masks(**options):
        model = classifier()
        with Session(
            model, "admm_pattern", budget=PATTERNS["2:4"], steps=40, share=0.2, **options
        ) as session:
            imposed = None
            for _ in steps(session, optimizer(session, lr=0.02), labelled(), 40):
                if session.pruner._imposed and imposed is None:
                    imposed = session.current_plan()
        return imposed, session.plan

    first, last = masks(sr_ste=True)
    assert first != last
    first, last = masks(sr_ste=False)
    assert first == last


def test_sr_ste_passes_the_gradient_and_decays_what_is_masked():
    """dW = g(masked W) + lambda (1 - M) W, by two passes of plain autograd."""
    model, batch = classifier(), labelled(1)[0]
    model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.set_attn_implementation("eager")
    with Session(
        model, "admm_pattern", budget=PATTERNS["2:4"], steps=12, share=0.5, decay=0.3
    ) as session:
        for _ in steps(session, optimizer(session), [batch], 8):
            pass
        masks = {n: session.pruner.gates[n].clone() for n in linears(model)}
        (model(**batch).loss + session.penalty()).backward()
        got = {n: m.weight.grad.clone() for n, m in linears(model).items()}
        weights = {n: m.weight.detach().clone() for n, m in linears(model).items()}
        trained(session, 4, lr=0.0)
    model.zero_grad()
    with torch.no_grad():
        for name, linear in linears(model).items():
            linear.weight.copy_(weights[name] * masks[name])
    model.train()(**batch).loss.backward()
    for name, linear in linears(model).items():
        want = linear.weight.grad + 0.3 * (1 - masks[name]) * weights[name]
        assert relative(got[name], want) < 1e-4, name


@pytest.mark.parametrize("sr_ste", [True, False])
def test_regions_and_levels_hold_in_the_end(sr_ste, tmp_path):
    model, batch = classifier(), labelled(1)[0]
    options = {"region": 6, "bits": 4, "sr_ste": sr_ste}
    budget = "patterns=0.5,pattern=library"
    with Session(model, "admm_pattern", budget=budget, steps=60, **options) as session:
        trained(session, 60)
        model.eval()
        gated = answer(model, batch)
    plan = session.plan
    assert relative(answer(apply(model, plan), batch), gated) < 1e-6
    fast = convert(model, plan)
    assert relative(answer(fast, batch), gated) < 1e-5
    save(fast, tmp_path / "saved")
    assert torch.equal(answer(load(tmp_path / "saved"), batch), answer(fast, batch))
    for name, linear in linears(model).items():
        weight = linear.weight.detach()
        assert not bool(weight[~plan.masks[name].elements()].any())
        levels = weight.double() / plan.levels[name].scale
        assert float((levels - levels.round()).abs().max()) < 1e-5
        assert plan.levels[name].bits == 4
        assert float(levels.abs().max()) < 7.01
        n, k = weight.shape
        blocks = session.plan.masks[name].keep.view(n // 4, 4, k // 4, 4).any(3).any(1)
        regions = blocks.view(n // 16, 4, k // 16, 4).sum((1, 3))
        assert set(regions.flatten().tolist()) == {6}


def test_the_splitting_of_levels_by_hand():
    """After the pattern: Z, U, rho and W of two updates towards 3-bit levels, nothing but the pull
    moving W, and what is off the pattern standing still; then weights on the levels of the last."""
    model, name = classifier(), "layers.1.up"
    weight = find_sites(model).linear(model, 1, "up").weight
    options = {"stages": 2, "updates": 1, "share": 0.25, "rho": 0.5, "bits": 3}
    with Session(model, "admm_pattern", budget=PATTERNS["vector"], steps=12, **options) as session:
        pruner, still = session.pruner, torch.optim.SGD(model.parameters(), lr=0.0)
        told, seen = [], []
        for _ in steps(session, still, labelled(), 6):  # 3 for the pattern, 3 to let it settle
            told.append((pruner._imposed, pruner._frozen))
            seen.append(weight.detach().clone())
        assert all(torch.equal(w, seen[2]) for w in seen[3:]), "an imposed pattern pulls no more"
        assert told == [(False, False)] * 2 + [(True, False)] * 3 + [(True, True)]
        keep = pruner.gates[name].double().numpy()
        w = weight.detach().double().numpy() * keep
        off = weight.detach()[pruner.gates[name] == 0]
        z, u, rho = nearest_levels(w, 3), np.zeros_like(w), 0.5
        for after in (5.0, 5.0):
            np.testing.assert_allclose(pruner._z[name].numpy(), z, atol=1e-6)
            np.testing.assert_allclose(pruner._u[name].numpy(), u, atol=1e-6)
            assert session.penalty() == 0.0
            assert pruner.figures()["rho"] == rho
            before, way = pruner._updates, 0.0
            for _ in steps(session, still, labelled(), 2, session.step):
                w, way = least(w, z - u, rho), float(least(way, 1.0, rho))
                if pruner._updates > before:
                    break
            np.testing.assert_allclose(weight.detach().numpy() * keep, w, atol=1e-6)
            assert torch.equal(weight.detach()[pruner.gates[name] == 0], off)
            z = nearest_levels(w + u, 3)
            u, rho = (u + way * (w - z)) * rho / after, after
        assert pruner.figures()["rounded"] == 1.0
        assert session.penalty() == 0.0
        model.eval()
        gated = answer(model, labelled(1)[0])
        rounded = weight.detach().clone()
        for _ in steps(session, still, labelled(), 12 - session.step, session.step):
            assert torch.equal(weight, rounded), "nor do levels"
    np.testing.assert_allclose(weight.detach().numpy(), nearest_levels(w, 3), atol=1e-6)
    assert relative(answer(model.eval(), labelled(1)[0]), gated) < 1e-6


def test_a_frozen_pattern_gives_no_gradient_to_what_is_off_it():
    model, (batch,) = classifier(), labelled(1)
    options = {"stages": 1, "updates": 1, "bits": 4}
    with Session(model, "admm_pattern", budget=PATTERNS["2:4"], steps=12, **options) as session:
        for _ in steps(session, optimizer(session), [batch], 10):
            pass
        assert session.pruner._frozen
        (model(**batch).loss + session.penalty()).backward()
        for name, linear in linears(model).items():
            off = session.pruner.gates[name] == 0
            assert not bool(linear.weight.grad[off].any())
            assert bool(linear.weight.grad[~off].any())


def nearest_levels(weight, bits):
    """By a fine search over scales, the best one settled by least squares."""
    top, best = 2 ** (bits - 1) - 1, (np.inf, None)
    for scale in np.linspace(0.05, 1.2, 2000) * np.abs(weight).max() / top:
        q = np.clip(np.round(weight / scale), -top, top)
        exact = (weight * q).sum() / (q * q).sum()
        error = ((weight - exact * q) ** 2).sum()
        best = min(best, (error, exact), key=lambda found: found[0])
    for _ in range(5):
        q = np.clip(np.round(weight / best[1]), -top, top)
        best = (0, (weight * q).sum() / (q * q).sum())
    return best[1] * np.clip(np.round(weight / best[1]), -top, top)


def test_levels_pull_what_is_kept_until_they_almost_hold():
    """With the loss left out and a strong pull; then they hold to the bit."""
    model, residuals = classifier(), []
    options = {"rho": 0.25, "stages": 1, "updates": 20, "share": 0.5, "bits": 4}
    with Session(model, "admm_pattern", budget=PATTERNS["2:4"], steps=240, **options) as session:
        pruner = session.pruner
        for _ in range(240):
            session.after_backward()
            session.after_step()
            if pruner._frozen:
                residuals.append(pruner.figures()["residual"])
            if pruner._levels:
                break
        assert residuals[-1] < 0.01 < 0.05 < next(r for r in residuals if r < float("inf"))
        assert session.step < 200, "levels are final as soon as they almost hold"


def test_a_plan_with_levels_recovers_on_them():
    model, batch = classifier(), labelled(1)[0]
    options = {"bits": 3, "stages": 1, "updates": 1}
    with Session(model, "admm_pattern", budget=PATTERNS["2:4"], steps=12, **options) as session:
        trained(session, 12)
    plan = session.plan
    before = {n: m.weight.detach().clone() for n, m in linears(model).items()}
    with Session(model, plan, steps=30) as session:
        trained(session, 30, lr=0.01)
        model.eval()
        gated = answer(model, batch)
    assert session.plan == plan
    assert relative(answer(model, batch), gated) < 1e-6
    for name, linear in linears(model).items():
        assert torch.equal(linear.weight, plan.levels[name].nearest(linear.weight))
        assert not torch.equal(linear.weight, before[name]), "some have moved to another level"
        assert not bool(linear.weight[~plan.masks[name].keep].any())


def test_a_training_resumed_on_its_way_to_levels_goes_on_to_the_bit(tmp_path):
    """Interrupted before the pattern is frozen, on the way to levels, and on them."""
    budget, options = PATTERNS["vector"], {"bits": 3, "stages": 2, "updates": 1}
    path = tmp_path / "state"
    plan, state = interrupted("admm_pattern", budget, 24, (), path, **options)
    again, resumed = interrupted("admm_pattern", budget, 24, (17, 20, 23), path, **options)
    assert torch.load(path)["session"]["pruner"]["scales"]
    assert again == plan
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_a_plan_made_early_has_the_levels_of_that_moment():
    model = classifier()
    options = {"bits": 4, "stages": 1, "updates": 1}
    with Session(model, "admm_pattern", budget=PATTERNS["vector"], steps=12, **options) as session:
        for _ in steps(session, optimizer(session), labelled(), 3):
            plan = session.current_plan()
            for name, linear in linears(model).items():
                kept = linear.weight.detach() * plan.masks[name].keep
                assert plan.levels[name] == Levels.fit(kept, 4)
        trained(session, 9)


def test_masks_that_differ_merge_to_what_both_keep():
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    first = PatternMask(weight > 0, (1, 1))
    second = PatternMask(weight > 0.5, (1, 1))
    merged = first.merge(second)
    assert torch.equal(merged.elements(), weight > 0.5)
    sites = find_sites(tiny_model("bert"))
    plan = SparsityPlan({"layers.0.up": PatternMask(torch.ones(96, 64).bool(), (7, 1))})
    with pytest.raises(ValueError, match="does not divide"):
        plan.validate(sites, sites.fingerprint())
