"""Levels: nearest points by brute force, and the same weights wherever a plan is carried out."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import answer, relative, saved_files
from support.tiny_models import tiny_model

from secateurs import (
    BlockMask,
    HeadMask,
    PatternMask,
    SparsityPlan,
    apply,
    convert,
    explain,
    export_dense,
    find_sites,
    load,
    save,
)
from secateurs.errors import CheckpointError, PlanError
from secateurs.files import sha256
from secateurs.masking.gates import Gates
from secateurs.plan.quantization import Levels


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def least_error(weight: np.ndarray, top: int) -> float:
    """Over every choice of levels for every entry, each with its own best scale."""
    found = float(weight @ weight)
    for q in itertools.product(range(-top, top + 1), repeat=len(weight)):
        q = np.array(q, dtype=np.float64)
        if q.any():
            scale = (weight @ q) / (q @ q)
            found = min(found, float(((weight - scale * q) ** 2).sum()))
    return found


@pytest.mark.parametrize(("bits", "size"), [(2, 6), (3, 4), (4, 3)])
def test_the_fit_is_the_nearest_point_by_brute_force(bits, size):
    for seed in range(40):
        weight = normal(seed, size)
        if seed % 4 == 0:
            weight[0] = 0
        exact = weight.double().numpy()
        want = least_error(exact, 2 ** (bits - 1) - 1)
        for rounds in (0, 5):  # found by the search, and left by the turns
            got = Levels.fit(weight, bits, rounds).nearest(weight).double().numpy()
            assert ((exact - got) ** 2).sum() == pytest.approx(want, rel=1e-4, abs=1e-9), seed


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_search_alone_ends_where_no_turn_helps(bits):
    """The global minimum is a local one: its scale is the best for the levels nearest to it."""
    for seed in range(5):
        weight = normal(seed, 300)
        levels = Levels.fit(weight, bits, rounds=0)
        q = levels.codes(weight).double()
        best = float((weight.double() * q).sum() / q.square().sum())
        assert levels.scale == pytest.approx(best, rel=1e-5), seed


@pytest.mark.parametrize("bits", range(2, 9))
def test_each_entry_takes_its_nearest_level(bits):
    levels, weight = Levels(bits, 0.03), 0.08 * 2 ** (bits - 2) * normal(bits, 40, 7)
    top = 2 ** (bits - 1) - 1
    every = 0.03 * torch.arange(-top, top + 1).double()
    distance = (weight.double()[..., None] - every).abs()
    got = levels.nearest(weight)
    error = (weight.double() - got).abs().numpy()
    np.testing.assert_allclose(error, distance.min(-1).values.numpy(), atol=1e-6)
    assert torch.equal(levels.codes(weight).long(), distance.argmin(-1) - top)
    assert int(levels.codes(weight).abs().max()) == top


@pytest.mark.parametrize(("bits", "excess"), [(2, 1e-3), (3, 1e-3), (4, 1e-3), (8, 0.04)])
def test_turns_end_where_neither_step_helps_a_large_weight(bits, excess):
    """With more entries than the search looks at, half of them zero. With many levels there are
    many local minima, all of them low."""
    weight = normal(bits, 300, 100)
    weight[normal(9, 300, 100) < 0] = 0
    levels = Levels.fit(weight, bits, rounds=200)
    q = levels.codes(weight).double()
    best = float((weight.double() * q).sum() / q.square().sum())
    assert levels.scale == pytest.approx(best, rel=2e-4)
    error = float((weight - levels.nearest(weight)).square().sum())
    fine = [Levels(bits, s) for s in np.linspace(0.2, 3, 400) * levels.scale]
    least = min(float((weight - near.nearest(weight)).square().sum()) for near in fine)
    assert error <= (1 + excess) * least
    few = float((weight - Levels.fit(weight, bits).nearest(weight)).square().sum())
    assert few <= (1.01 + excess) * least
    assert not bool(levels.nearest(weight)[weight == 0].any())


def test_levels_of_levels_are_themselves_in_any_precision():
    for bits in (2, 4, 8):
        codes = torch.randint(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), (50, 40))
        levels = Levels(bits, 0.0137)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            values = levels.values(codes.to(torch.int8), dtype)
            assert values.dtype == dtype
            assert torch.equal(levels.codes(values), codes.to(torch.int8))
            assert torch.equal(levels.nearest(values), values)
        assert Levels.fit(levels.values(codes, torch.float32), bits).scale == pytest.approx(0.0137)


def test_an_empty_and_a_tiny_weight_have_levels():
    for weight in (torch.zeros(3, 3), torch.zeros(0, 4)):
        assert not bool(Levels.fit(weight, 4).nearest(weight).any())
    tiny = 1e-30 * normal(0, 5)
    near = Levels.fit(tiny, 8).nearest(tiny)
    assert relative(1e30 * near, 1e30 * tiny) < 0.02


@pytest.mark.parametrize(
    ("bits", "scale", "words"),
    [
        (1, 0.1, "2 to 8 bits, got 1"),
        (9, 0.1, "got 9"),
        (2.5, 0.1, "got 2.5"),
        (4, 0.0, "a scale above 0"),
        (4, -1.0, "a scale above 0"),
        (4, float("nan"), "a scale above 0"),
        (4, 1e-60, "a scale above 0"),
        (4, float("inf"), "a scale above 0"),
    ],
)
def test_impossible_levels_are_refused(bits, scale, words):
    with pytest.raises(PlanError, match=words):
        Levels(bits, scale)


def plan_for(model) -> SparsityPlan:
    """Levels alone, of a pattern, of blocks, and of a weight that loses heads."""
    keep = normal(0, 96, 64).view(96, 16, 4)
    fours = torch.zeros(96, 16, 4).scatter(2, keep.topk(2).indices, 1.0).view(96, 64).bool()
    masks = {
        "layers.0.up": PatternMask(fours, (1, 1)),
        "layers.1.output": BlockMask(normal(1, 4, 4) > 0, (16, 16)),
        "layers.1.heads": HeadMask(torch.tensor([True, True, False, False])),
        "layers.2.heads": HeadMask(torch.tensor([False, True, True, True])),
    }
    sites = find_sites(model)
    levels = {}
    for i, role, bits in (
        (0, "up", 4), (0, "down", 2), (0, "query", 8), (1, "output", 3), (1, "key", 4),
        (2, "output", 5),
    ):  # fmt: skip
        name = f"layers.{i}.{role}"
        weight = sites.linear(model, i, role).weight
        weight = weight * masks[name].elements() if name in masks else weight
        levels[name] = Levels.fit(weight, bits)
    return SparsityPlan(masks, sites.fingerprint(), levels=levels)


def test_masked_gated_converted_and_reloaded_models_are_one(model, batch, tmp_path):
    plan = plan_for(model)
    masked = apply(model, plan)
    sites, want = find_sites(masked), answer(masked, batch)
    assert relative(want, answer(apply(model, SparsityPlan(plan.masks)), batch)) > 1e-3
    for name, levels in plan.levels.items():
        _, layer, role = name.split(".")
        weight = sites.linear(masked, int(layer), role).weight.detach()
        codes = (weight.double() / levels.scale).round()
        assert float((weight - codes * levels.scale).abs().max()) < 1e-6
        assert int(codes.abs().max()) <= 2 ** (levels.bits - 1) - 1
        if name in plan.masks:
            assert not bool(weight[~plan.masks[name].elements()].any())
    with Gates(model, find_sites(model)) as gates:
        gates.set_plan(plan)
        assert relative(answer(model, batch), want) < 1e-6
    fast = convert(model, plan)
    assert relative(answer(fast, batch), want) < 1e-5
    save(fast, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(answer(again, batch), answer(fast, batch))
    for one in (fast, again):
        dense = export_dense(one).state_dict()
        for name, value in masked.state_dict().items():
            assert torch.equal(dense[name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_same_levels(dtype, batch, tmp_path):
    """A model on levels stays on them: its codes in half precision are those in float32."""
    model = tiny_model("bert")
    plan = plan_for(model)
    settled = apply(model, plan)
    halved = apply(settled, SparsityPlan()).to(dtype)
    sites = find_sites(model)
    fast = convert(halved, plan)
    for name, levels in plan.levels.items():
        _, layer, role = name.split(".")
        full = sites.linear(settled, int(layer), role).weight
        half = sites.linear(apply(halved, plan), int(layer), role).weight
        assert half.dtype == dtype
        assert torch.equal(levels.codes(half), levels.codes(full))
        assert torch.equal(half, levels.values(levels.codes(full), dtype))
    save(fast, tmp_path / "m")
    assert load(tmp_path / "m").dtype == dtype
    assert torch.equal(answer(load(tmp_path / "m"), batch), answer(fast, batch))


def test_a_saved_weight_on_levels_takes_a_byte_each(tmp_path):
    model = tiny_model("bert")
    plan = plan_for(model)
    save(convert(model, plan), tmp_path / "m")
    tensors = load_file(saved_files(tmp_path / "m")[0])
    names = {n: t for n, t in tensors.items() if t.dtype == torch.int8}
    assert names["encoder.layer.0.intermediate.dense.weight"].shape == (96, 64)
    assert names["encoder.layer.2.attention.output.dense.weight"].shape == (64, 48)
    assert "encoder.layer.1.attention.output.dense.weight.values" in names
    assert len(names) == len(plan.levels)


def test_a_saved_weight_that_should_be_on_levels_and_is_not_is_refused(tmp_path):
    model, path = tiny_model("bert"), tmp_path / "m"
    save(convert(model, plan_for(model)), path)
    weights, _ = saved_files(path)
    tensors = load_file(weights)
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors[name] = tensors[name].float()
    save_file(tensors, weights)
    config = json.loads((path / "config.json").read_text())
    config["secateurs"]["sha256"][weights.name] = sha256(weights)
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"as int8 .*, got float32"):
        load(path)


def test_explain_tells_of_levels():
    model = tiny_model("bert")
    reasons = {r.site: r.reason for r in explain(convert(model, plan_for(model)))}
    assert "values on 15 levels of 4 bits" in reasons["layers.0.up"]
    assert "values of query on 255 levels of 8 bits" in reasons["layers.0.query+key+value"]
    assert "levels" not in reasons["layers.2.up"]


def test_plans_with_levels_survive_saving_and_merge(tmp_path):
    plan = plan_for(tiny_model("bert"))
    plan.save(tmp_path / "plan")
    loaded = SparsityPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert loaded.levels == plan.levels
    assert plan != SparsityPlan(plan.masks, plan.model)
    heads = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([True, False, True, True]))})
    both = heads.merge(plan)
    assert both.levels == plan.levels
    assert both.masks.keys() == {*plan.masks, "layers.0.heads"}
    assert plan.merge(loaded) == plan
    other = SparsityPlan(levels={"layers.0.up": Levels(4, 1.0)})
    with pytest.raises(PlanError, match=r"must round layers\.0\.up alike"):
        plan.merge(other)


def test_levels_stand_at_linears_only():
    model = tiny_model("bert")
    sites, levels = find_sites(model), Levels(4, 0.1)
    for name, words in (("layers.0.heads", "a linear's weight"), ("layers.9.up", "does not have")):
        plan = SparsityPlan(levels={name: levels})
        for verb in (apply, convert):
            with pytest.raises(PlanError, match=words):
                verb(model, plan)
    with Gates(model, sites) as gates, pytest.raises(PlanError, match="a linear's weight"):
        gates.set_levels("layers.0.heads", levels)


def test_the_gradient_passes_through_levels_but_not_through_a_shut_gate(batch):
    model = tiny_model("bert")
    sites, levels = find_sites(model), Levels(3, 0.05)
    weight = sites.linear(model, 1, "up").weight
    mask = (normal(0, 96, 64) > 0).float()
    with Gates(model, sites) as gates:
        gates["layers.1.up"] = mask
        gates.set_levels("layers.1.up", levels)
        model(**batch)[0].square().sum().backward()
        got, weight.grad = weight.grad, None
        before = weight.detach().clone()
        gates.fold("layers.1.up")
        folded = answer(model, batch)
    assert torch.equal(weight, levels.nearest(before * mask))
    assert torch.equal(answer(model, batch), folded)
    model(**batch)[0].square().sum().backward()
    assert relative(got, weight.grad * mask) < 1e-5
