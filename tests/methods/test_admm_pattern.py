"""ADMM's projections are nearest points, its steps those of the formulas, its residual falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import tiny_model
from models import answer, relative
from torch import nn
from training import classifier, labelled, optimizer, steps, trained

from secateurs import PatternMask, SparsityPlan, apply, convert, find_sites
from secateurs.pruning.admm_pattern import _free, quantised, regional
from secateurs.session import Session

PATTERNS = {
    "vector": "patterns=0.5,vector=16",
    "2:4": "patterns=0.5,pattern=2:4",
    "library": "patterns=0.5,pattern=library",
}


def energy(weight, keep) -> float:
    return float((weight * keep).double().square().sum())


def test_the_regional_projection_is_the_nearest_point_by_brute_force():
    """One region of 2 x 2 of its blocks (the matrix ends there), one or two of them may stay."""
    random = torch.Generator().manual_seed(0)
    for most in (1, 2):
        weight = torch.randn(4, 8, generator=random)
        pattern = torch.rand(4, 8, generator=random) < 0.5
        got = regional(weight, pattern, (2, 4), most)
        best = 0.0
        for chosen in itertools.combinations(range(4), most):
            mask = torch.zeros(2, 2, dtype=torch.bool)
            mask.view(-1)[list(chosen)] = True
            whole = mask.repeat_interleave(2, 0).repeat_interleave(4, 1)
            best = max(best, energy(weight, pattern & whole))
        assert energy(weight, got) == pytest.approx(best)
        assert not bool((got & ~pattern).any())


def test_every_region_keeps_its_own_blocks():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    keep = regional(weight, torch.ones(32, 64).bool(), (4, 4), 3)
    blocks = keep.view(8, 4, 16, 4).all(3).all(1)
    assert torch.equal(blocks, keep.view(8, 4, 16, 4).any(3).any(1))
    assert set(blocks.view(2, 4, 4, 4).sum((1, 3)).flatten().tolist()) == {3}


def test_free_choice_keeps_the_largest_of_every_block():
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    keep = _free(weight, 5)
    for i, j in itertools.product(range(2), range(3)):
        tile = (slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
        assert int(keep[tile].sum()) == 5
        assert weight[tile].abs()[keep[tile]].min() >= weight[tile].abs()[~keep[tile]].max()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_levels_are_few_symmetric_and_hold_zero(bits):
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(bits))
    weight[torch.rand(30, 20) < 0.5] = 0
    got = quantised(weight, bits)
    assert not bool(got[weight == 0].any())
    step = got.abs()[got != 0].min()
    levels = (got / step).double()
    assert float((levels - levels.round()).abs().max()) < 1e-5
    assert int(levels.abs().max().round()) <= 2 ** (bits - 1) - 1
    # Alternating ends no worse than where it began, and alpha is the best for its levels.
    top = 2 ** (bits - 1) - 1
    alpha = weight.abs().max() / top
    plain = alpha * (weight / alpha).round()
    assert (weight - got).norm() <= (weight - plain).norm() + 1e-6
    best = float((weight * levels).sum() / levels.square().sum())
    assert float(step) == pytest.approx(best, rel=0.02)


def test_levels_of_a_weight_made_of_levels_are_it():
    made = 0.37 * torch.randint(-7, 8, (40, 40), generator=torch.Generator().manual_seed(0))
    assert relative(quantised(made, 4), made) < 1e-6
    assert not bool(quantised(torch.zeros(3, 3), 4).any())


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
    """Z, U, rho and the penalty of two updates, weights standing still between them."""
    model = classifier()
    name = "layers.1.up"
    w = find_sites(model).linear(model, 1, "up").weight.detach().double().numpy()
    options = {"stages": 2, "updates": 1, "share": 1.0, "rho": 0.5}
    with Session(model, "admm_pattern", budget=PATTERNS["vector"], steps=2, **options) as session:
        pruner = session.pruner
        z, u, rho = nearest_vector(w, 16), np.zeros_like(w), 0.5
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        for _ in steps(session, still, labelled(), 2):
            after = min(rho * 10, 5.0)
            z = nearest_vector(w + u, 16)
            u = (u + w - z) * rho / after
            rho = after
            np.testing.assert_allclose(pruner._z[name].numpy(), z, atol=1e-6)
            np.testing.assert_allclose(pruner._u[name].numpy(), u, atol=1e-6)
            assert pruner.figures()["rho"] == rho
        residual = max(
            float((s.weight - pruner._z[n]).detach().norm() / s.weight.detach().norm())
            for n, s in linears(model).items()
        )
        assert pruner.figures()["residual"] == pytest.approx(residual, rel=1e-5)


def linears(model) -> dict[str, nn.Module]:
    sites = find_sites(model)
    return {
        s.name: sites.linear(model, s.layer, s.name.split(".")[2]) for s in sites.of_kind("linear")
    }


def test_the_penalty_is_the_squared_distance():
    model = classifier()
    with Session(model, "admm_pattern", budget=PATTERNS["2:4"], steps=20, rho=0.25) as session:
        for name, u in session.pruner._u.items():
            u.normal_(generator=torch.Generator().manual_seed(len(name)))
        z, u = session.pruner._z, session.pruner._u
        want = sum(
            0.125 * float((m.weight.detach() - z[n] + u[n]).double().square().sum())
            for n, m in linears(model).items()
        )
        penalty = session.penalty()
        assert float(penalty.detach()) == pytest.approx(want, rel=1e-5)
        penalty.backward()
        weight = linears(model)["layers.0.key"].weight
        pull = 0.25 * (weight - z["layers.0.key"] + u["layers.0.key"])
        assert relative(weight.grad, pull.detach()) < 1e-5
        model.zero_grad()
        trained(session, 20)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_residual_falls_until_the_pattern_holds_almost_by_itself(pattern):
    """With the loss left out and a strong pull the weights must walk into the set."""
    model, residuals = classifier(), []
    options = {"rho": 1.0, "stages": 1, "updates": 30, "share": 1.0}
    with Session(model, "admm_pattern", budget=PATTERNS[pattern], steps=120, **options) as session:
        sgd = torch.optim.SGD(model.parameters(), lr=0.2)
        for _ in range(120):
            session.penalty().backward() if not session.pruner._imposed else None
            session.after_backward()
            sgd.step()
            session.after_step()
            sgd.zero_grad()
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


def test_regions_and_levels_hold_in_the_end():
    model = classifier()
    options = {"region": 6, "bits": 4}
    budget = "patterns=0.5,pattern=library"
    with Session(model, "admm_pattern", budget=budget, steps=12, **options) as session:
        trained(session, 12)
        model.eval()
        gated = answer(model, labelled(1)[0])
    assert relative(answer(apply(model, session.plan), labelled(1)[0]), gated) < 1e-5
    for name, linear in linears(model).items():
        weight = linear.weight.detach() * session.plan.masks[name].elements()
        assert torch.equal(weight, linear.weight)
        step = weight.abs()[weight != 0].min()
        levels = weight / step
        assert float((levels - levels.round()).abs().max()) < 1e-3
        assert float(levels.abs().max()) < 7.01
        n, k = weight.shape
        blocks = session.plan.masks[name].keep.view(n // 4, 4, k // 4, 4).any(3).any(1)
        regions = blocks.view(n // 16, 4, k // 16, 4).sum((1, 3))
        assert set(regions.flatten().tolist()) == {6}


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
