"""refit: each sub-layer against float64 normal equations, and what it must not touch."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from support.models import answer, calibration, relative
from support.plans import PLANS
from support.tiny_models import tiny_model

from secateurs import BlockMask, Levels, SparsityPlan, apply, convert, find_sites, prune, refit
from secateurs.architectures.calls import states_of
from secateurs.errors import ArgumentError, DataError, MethodError, PlanError
from secateurs.reconstruction import walk as walk_module
from secateurs.reconstruction.least_squares import NormalEquations

PLAN = SparsityPlan(PLANS["uneven"])


def distance(model, plan, dense, batches):
    return sum(relative(answer(apply(model, plan), b), answer(dense, b)) for b in batches)


@torch.no_grad()
def stream(model, batches, sublayer):
    """The residual stream of real tokens behind a sub-layer of the first layer, before a norm
    behind it, `[N, d]`."""
    sites, found = find_sites(model), []
    architecture, layer = sites.architecture, sites.layer(model, 0)
    lasts = [layer.get_submodule(s.last.path) for s in architecture.sublayers]
    for batch in batches:
        inputs, outputs = [], []
        hooks = [m.register_forward_hook(lambda *a, kept=outputs: kept.append(a[2])) for m in lasts]
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, named, kept=inputs: kept.append(states_of(args, named)),
                with_kwargs=True,
            )
        )
        model(**batch)
        for hook in hooks:
            hook.remove()
        states = inputs[0] + outputs[0]
        if sublayer is architecture.ffn:
            if not architecture.norm_first:
                states = layer.get_submodule(architecture.attention.norm)(states)
            states = states + outputs[1]
        mask = batch.get("attention_mask")
        found.append(states.flatten(0, 1) if mask is None else states[mask.bool()])
    return torch.cat(found)


def test_each_fit_brings_the_residual_stream_closer(model):
    """On what it was fitted to: attention against the model as it was, the FFN against the model
    whose attention alone was fitted."""
    batches = calibration(model, 20)
    fitted = refit(model, PLAN, batches, progress=False)
    halfway = copy.deepcopy(fitted)
    attention, ffn = find_sites(model).architecture.sublayers
    path = f"{find_sites(model).layer_path(0)}.{ffn.last.path}"
    halfway.get_submodule(path).load_state_dict(model.get_submodule(path).state_dict())
    for sublayer, before, after in ((attention, model, halfway), (ffn, halfway, fitted)):
        want = stream(model, batches, sublayer)
        old, new = (
            (stream(apply(m, PLAN), batches, sublayer) - want).norm() for m in (before, after)
        )
        assert new < 0.99 * old  # in the norm of least squares, which a fit can only lower


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "gpt2"])
def test_a_pruned_model_comes_closer_on_data_it_was_not_fitted_to(family):
    model = tiny_model(family)
    fitted = refit(model, PLAN, calibration(model, 30), progress=False)
    unseen = calibration(model, 4, seed=9)
    assert distance(fitted, PLAN, model, unseen) < 0.8 * distance(model, PLAN, model, unseen)


def test_the_plan_converts_the_fitted_model(model, batch):
    fitted = refit(model, PLAN, calibration(model, 3), progress=False)
    fast, masked = answer(convert(fitted, PLAN), batch), answer(apply(fitted, PLAN), batch)
    assert relative(fast, masked) < 1e-4


def test_only_kept_columns_of_the_last_linears_move(model):
    before = {name: p.clone() for name, p in model.state_dict().items()}
    fitted = refit(model, PLAN, calibration(model, 3), progress=False)
    assert all(torch.equal(before[name], held) for name, held in model.state_dict().items())
    sites = find_sites(model)
    lasts = [sublayer.last for sublayer in sites.architecture.sublayers]
    paths = {f"{sites.layer_path(i)}.{last.path}" for i in range(3) for last in lasts}
    for name, held in fitted.state_dict().items():
        if name.rpartition(".")[0] not in paths:
            assert torch.equal(before[name], held), name
    for i in range(3):
        for last in lasts:
            removed = ~sites.keep(PLAN, i).sides(last.role)[1]
            old, new = (sites.linear(m, i, last.role).weight for m in (model, fitted))
            assert torch.equal(old[:, removed], new[:, removed])
            assert not torch.equal(old, new)


def test_an_empty_plan_leaves_the_model_as_it_computes(model, batch):
    fitted = refit(model, SparsityPlan(), calibration(model, 3), progress=False)
    assert relative(answer(fitted, batch), answer(model, batch)) < 1e-4


def test_it_repeats_itself():
    model = tiny_model("bert")
    first, second = (refit(model, PLAN, calibration(model, 3), progress=False) for _ in range(2))
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_padding_does_not_count():
    model, batches = tiny_model("bert"), calibration(tiny_model("bert"), 3)
    others = [{**b, "input_ids": b["input_ids"].clone()} for b in batches]
    for batch in others:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    first, second = (refit(model, PLAN, b, progress=False) for b in (batches, others))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert relative(a.float(), b.float()) < 1e-5


def ridge_by_hand(phi, e, ridge, with_bias=True):
    """`[K + 1, N]`, the bias last: the whole system at once, in float64, bias as ones."""
    ones = torch.cat([phi, torch.ones(len(phi), int(with_bias), dtype=torch.float64)], 1)
    damping = ridge * phi.square().sum(0).mean() * torch.eye(ones.shape[1]).double()
    if with_bias:
        damping[-1, -1] = 0
    return torch.linalg.solve(ones.T @ ones + damping, ones.T @ e)


@torch.no_grad()
def at(model, path, batches):
    """What the module at `path` reads and gives for real tokens, `[N, K]` and `[N, d]`."""
    read, given = [], []
    for batch in batches:
        real, states = batch["attention_mask"].bool(), []
        hook = model.get_submodule(path).register_forward_hook(
            lambda _, args, out, kept=states: kept.extend((args[0], out))
        )
        model(**batch)
        hook.remove()
        read.append(states[0][real])
        given.append(states[1][real])
    return torch.cat(read), torch.cat(given)


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_the_first_layer_is_the_ridge_regression_by_hand(part):
    """Both sub-layers of the first layer of a BERT, whose norms come behind: the FFN's residual is
    normalised, and in the pruned model that of the attention as it was fitted."""
    model, batches, ridge = tiny_model("bert"), calibration(tiny_model("bert"), 8), 0.05
    fitted = refit(model, PLAN, batches, ridge=ridge, progress=False)
    dense, pruned = tiny_model("bert").double(), apply(fitted, PLAN).double()
    layer, role = "encoder.layer.0", "output" if part == "attention" else "down"
    path = f"{layer}.{'attention.output.dense' if part == 'attention' else 'output.dense'}"
    keep = find_sites(model).keep(PLAN, 0).sides(role)[1]
    phi, want = at(pruned, path, batches)[0][:, keep], at(dense, path, batches)[1]
    if part == "ffn":
        norm = f"{layer}.attention.output.LayerNorm"
        want += at(dense, norm, batches)[1] - at(pruned, norm, batches)[1]
    old, new = (m.get_submodule(path) for m in (model, fitted))
    before = phi @ old.weight[:, keep].double().T + old.bias.double()
    solved = ridge_by_hand(phi, (want - before).detach(), ridge)
    assert relative((new.weight - old.weight)[:, keep].double(), solved[:-1].T) < 1e-3
    assert relative((new.bias - old.bias).double(), solved[-1]) < 1e-3


@pytest.mark.parametrize("with_bias", [True, False])
def test_normal_equations_in_chunks_solve_the_whole_system(with_bias):
    random = torch.Generator().manual_seed(0)
    phi, e = (torch.randn(200, n, generator=random, dtype=torch.float64) for n in (7, 3))
    phi += 2
    sums = NormalEquations(7, 3, with_bias, torch.device("cpu"))
    for start in range(0, 200, 33):
        sums.add(phi[start : start + 33], e[start : start + 33])
    weight = sums.solve(0.1)
    bias = sums.bias(weight)
    solved = ridge_by_hand(phi, e, 0.1, with_bias)
    assert relative(weight.T, solved[:7]) < 1e-4
    assert relative(bias, solved[7]) < 1e-4 if with_bias else not bias.any()


def masks(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def test_linears_with_masks_are_fitted_under_them():
    """Nearly as close as the least squares of each output alone, over the inputs that it keeps."""
    model, batches = tiny_model("bert"), calibration(tiny_model("bert"), 20)
    plan = SparsityPlan({"layers.0.query": BlockMask(masks(1, 4, 4), (16, 16))})
    fitted = refit(model, plan, batches, ridge=0.02, progress=False)
    path = "encoder.layer.0.attention.self.query"
    phi, want = (t.detach() for t in at(tiny_model("bert").double(), path, batches))
    old = model.get_submodule(path)
    keep, before = plan.masks["layers.0.query"].elements(), old.weight.detach().double()
    mean, centred = phi.mean(0), phi - phi.mean(0)
    h = centred.T @ centred + 0.02 * phi.square().sum(0).mean() * torch.eye(64)
    exact = torch.zeros_like(before)
    for row, kept in enumerate(keep):
        exact[row, kept] = torch.linalg.solve(h[kept][:, kept], (h @ before[row])[kept])

    def loss(weight):
        return float(((weight - before) @ h * (weight - before)).sum())

    new = fitted.get_submodule(path)
    got = (new.weight * keep).detach().double()
    start, best = loss(before * keep), loss(exact)
    assert best < loss(got) < best + 0.02 * (start - best)
    output = phi @ got.T + new.bias.detach().double()
    assert relative(output.mean(0), want.mean(0)) < 1e-5  # the bias takes what is left
    assert torch.equal(new.weight[~keep], old.weight[~keep])
    assert relative(mean @ got.T + new.bias.detach().double(), want.mean(0)) < 1e-5


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_masks_beside_removed_units_fit_too(family, batch):
    """Biases of what is gone stay gone; a sub-layer without heads, and one mask without weights."""
    model = tiny_model(family)
    plan = SparsityPlan(
        {
            **PLANS["uneven"],
            "layers.0.query": BlockMask(masks(1, 4, 4), (16, 16)),
            "layers.0.up": BlockMask(masks(2, 96, 64), (1, 1)),
            "layers.1.output": BlockMask(masks(3, 4, 4) & False, (16, 16)),
            "layers.2.heads": PLANS["no heads in a layer"]["layers.1.heads"],
            "layers.2.output": BlockMask(masks(4, 64, 64), (1, 1)),
        },
        levels={"layers.1.down": Levels(4, 0.01)},
    )
    fitted = refit(model, plan, calibration(model, 20), progress=False)
    unseen = calibration(model, 4, seed=9)
    assert distance(fitted, plan, model, unseen) < distance(model, plan, model, unseen)
    assert relative(answer(convert(fitted, plan), batch), answer(apply(fitted, plan), batch)) < 1e-4
    sites = find_sites(model)
    gone = ~sites.keep(plan, 0).sides("up")[0]
    old, new = (sites.linear(m, 0, "up") for m in (model, fitted))
    assert torch.equal(old.weight[gone], new.weight[gone])
    if old.bias is not None:
        assert torch.equal(old.bias[gone], new.bias[gone])
        assert not torch.equal(old.bias[~gone], new.bias[~gone])
    rounded = sites.linear(fitted, 1, "down").weight
    assert torch.equal(plan.levels["layers.1.down"].nearest(rounded), rounded)


@pytest.mark.parametrize(
    "name", ["no attention", "no heads in a layer", "no middle layer", "attention rules"]
)
def test_removed_sub_layers_are_made_up_for_by_the_others(name):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS[name])
    fitted = refit(model, plan, calibration(model, 20), progress=False)
    unseen = calibration(model, 4, seed=9)
    assert distance(fitted, plan, model, unseen) < distance(model, plan, model, unseen)


def test_few_tokens_are_told_and_held_by_the_ridge(caplog):
    model = tiny_model("bert")
    one = [{name: x[:1, :4] for name, x in calibration(model, 1)[0].items()}]
    with caplog.at_level(logging.WARNING, "secateurs"):
        fitted = refit(model, PLAN, one, progress=False)
    assert "fewer than its" in caplog.text
    assert all(bool(torch.isfinite(p).all()) for p in fitted.parameters())


def test_bad_input_is_refused():
    model = tiny_model("bert")
    with pytest.raises(DataError, match="at least one batch"):
        refit(model, PLAN, [])
    with pytest.raises(MethodError, match="ridge of at least 0, got -1"):
        refit(model, PLAN, calibration(model, 1), ridge=-1.0)
    with pytest.raises(PlanError):
        refit(tiny_model("bert", num_hidden_layers=2), PLAN, calibration(model, 1))
    same = [{name: x[:1].expand(6, -1) for name, x in calibration(model, 1)[0].items()}]
    with pytest.raises(MethodError, match="a ridge above 0"):
        refit(model, SparsityPlan(), same, ridge=0.0, progress=False)
    model.embeddings.LayerNorm.weight.data[0] = float("nan")
    with pytest.raises(MethodError, match="finite activations"):
        refit(model, PLAN, calibration(model, 1), progress=False)


def test_it_starts_from_a_plan_of_any_method():
    model = tiny_model("bert")
    plan = prune(model, method="magnitude", budget="heads=0.5,neurons=0.5")
    fitted, unseen = (
        refit(model, plan, calibration(model, 30), progress=False),
        calibration(model, 4, seed=9),
    )
    assert distance(fitted, plan, model, unseen) < 0.8 * distance(model, plan, model, unseen)


def test_a_model_fitted_in_place_is_what_its_copy_becomes(model):
    batches = calibration(model, 3)
    wanted = refit(model, PLAN, batches, progress=False).state_dict()
    fitted = refit(model, PLAN, batches, inplace=True, progress=False)
    assert fitted is model
    assert all(torch.equal(wanted[name], value) for name, value in model.state_dict().items())


def test_a_model_of_inference_mode_is_not_fitted_in_place():
    with torch.inference_mode():
        model = tiny_model("bert")
    with pytest.raises(ArgumentError, match="inference_mode"):
        refit(model, PLAN, calibration(model, 1), inplace=True, progress=False)


def test_in_place_one_layer_more_is_held_at_a_time(monkeypatch):
    """Weights that are alive while layers run, beside those of the model: of one layer at most."""
    model = tiny_model("bert")
    held = {id(parameter) for parameter in model.parameters()}
    layer = sum(p.numel() for p in find_sites(model).layer(model, 0).parameters())
    before = walk_module.Walk.advance
    extra = []

    def advance(walk, index, run):
        parameters = [*walk.dense.parameters(), *walk.pruned.parameters()]
        extra.append(sum(p.numel() for p in {*parameters} if id(p) not in held))
        before(walk, index, run)

    monkeypatch.setattr(walk_module.Walk, "advance", advance)
    refit(model, PLAN, calibration(model, 2), inplace=True, progress=False)
    assert len(extra) == 3 * 2
    assert set(extra) == {layer}
