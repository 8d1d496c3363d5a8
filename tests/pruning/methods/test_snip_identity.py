"""SNIP's norms, thresholds and spectral normalisation, each against a computation of its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.models import answer, relative
from support.training import classifier, labelled, optimizer, steps, trained, without_dropout
from torch import nn

from secateurs import apply, find_sites
from secateurs.masking.gates import Gates
from secateurs.pruning.methods.snip_identity import power_iteration, spectral_norm
from secateurs.pruning.session import Session


@pytest.mark.parametrize("shape", [(7, 5), (5, 9)])
def test_the_spectral_norm_of_known_matrices(shape):
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(shape[0], 5)))
    right, _ = np.linalg.qr(random.normal(size=(shape[1], 5)))
    weight = torch.tensor(left @ np.diag([3.0, 2.0, 1.0, 0.5, 0.1]) @ right.T).requires_grad_()
    u = power_iteration(weight.detach(), torch.tensor(random.normal(size=shape[0])), 60)
    sigma = spectral_norm(weight, u)
    assert float(sigma.detach()) == pytest.approx(3.0, rel=1e-9)
    sigma.backward()  # d sigma / dW = u v^T
    np.testing.assert_allclose(weight.grad.numpy(), np.outer(left[:, 0], right[:, 0]), atol=1e-8)


def largest(linear: nn.Linear) -> float:
    """The largest singular value of its weight."""
    return float(torch.linalg.matrix_norm(linear.weight.detach(), 2))


def mappings(model, batch):
    """What every head, attention and FFN adds to its residual, and the sub-layers' inputs; float64
    numpy, by the definition, on real tokens."""
    model, found = copy.deepcopy(model).double(), {}
    real = batch["attention_mask"].bool()
    hooks = []
    for i, layer in enumerate(model.roberta.encoder.layer):

        def attention(module, args, out, i=i):
            context, weight = args[0][real], module.weight
            parts = [
                context[:, h * 16 : (h + 1) * 16] @ weight[:, h * 16 : (h + 1) * 16].T
                for h in range(4)
            ]
            found[f"layers.{i}.heads"] = [p.detach().numpy() for p in parts]
            found[f"layers.{i}.attention"] = [out[real].detach().numpy()]

        def ffn(module, args, out, i=i):
            found[f"layers.{i}.ffn"] = [out[real].detach().numpy()]

        def enter(module, args, name):
            found[f"input {name}"] = args[0][real].detach().numpy()

        hooks += [
            layer.attention.output.dense.register_forward_hook(attention),
            layer.output.dense.register_forward_hook(ffn),
            layer.attention.self.query.register_forward_pre_hook(
                lambda m, a, n=f"layers.{i}.attention": enter(m, a, n)
            ),
            layer.intermediate.dense.register_forward_pre_hook(
                lambda m, a, n=f"layers.{i}.ffn": enter(m, a, n)
            ),
        ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return found


def oracle_norm(estimator, mapping, entry):
    lengths = np.linalg.norm(mapping, axis=-1)
    if estimator == "l2":
        return lengths.mean() / np.sqrt(mapping.shape[-1])
    if estimator == "rel":
        return (lengths / np.linalg.norm(entry, axis=-1)).mean()
    sizes = np.sort(np.abs(mapping).ravel())
    return sizes[round(0.999 * sizes.size) - 1]


@pytest.mark.parametrize("estimator", ["l2", "rel", "linf"])
@pytest.mark.parametrize("budget", ["heads=0.5", "modules=0.5"])
def test_norms_are_those_of_what_is_added_to_the_residual(estimator, budget):
    model, batches = without_dropout(classifier()), labelled(2)
    want: dict[str, np.ndarray] = {}
    for batch in batches:
        found = mappings(model, batch)
        for name, parts in found.items():
            if name.startswith("input") or name.endswith("heads") != budget.startswith("heads"):
                continue
            entry = found[f"input {name.replace('.heads', '.attention')}"]
            norms = np.array([oracle_norm(estimator, part, entry) for part in parts]) / 2
            want[name] = want.get(name, 0) + norms
    options = {"estimator": estimator, "spectral": False, "per_parameter": False}
    with Session(model, "snip_identity", budget=budget, steps=20, **options) as session:
        for _ in steps(session, torch.optim.SGD(model.parameters(), lr=0.0), batches, 2):
            pass
        got = session.pruner.scores()
        assert got.keys() == want.keys()
        for name, norms in want.items():
            np.testing.assert_allclose(got[name].numpy().reshape(-1), norms, rtol=1e-4)
        session.pruner.per_parameter = True  # of 4 * 64 * 64 in each attention, 2 * 64 * 96 in FFNs
        for name, scores in session.pruner.scores().items():
            share = (2 * 64 * 96 if name.endswith("ffn") else 4 * 64 * 64) / (3 * 28672)
            want_here = want[name] * len(want[name]) / share
            np.testing.assert_allclose(scores.numpy().reshape(-1), want_here, rtol=1e-4)


def gate_derivatives(model, batch, names):
    """Means over examples of |dL/d gate|, by central differences in float64."""
    model = copy.deepcopy(model).double().eval()
    sites, examples, step = find_sites(model), len(batch["labels"]), 1e-5
    found = {}
    for name in names:
        shape = (4,) if name.endswith(".heads") else ()
        found[name] = np.zeros(shape)
        for unit in np.ndindex(shape):
            for example in range(examples):
                losses = []
                for change in (step, -step):
                    gate = torch.ones(examples, *shape, dtype=torch.float64)
                    gate[(example, *unit)] += change
                    with Gates(model, sites) as gates, torch.no_grad():
                        gates[name] = gate
                        losses.append(float(model(**batch).loss))
                found[name][unit] += abs(losses[0] - losses[1]) / (2 * step)
    return found


@pytest.mark.parametrize("budget", ["heads=0.5", "modules=0.5"])
def test_taylor_is_the_mean_derivative_of_single_examples(budget):
    model, batches = without_dropout(classifier()), labelled(2)
    options = {"estimator": "taylor", "spectral": False, "per_parameter": False}
    with Session(model, "snip_identity", budget=budget, steps=20, **options) as session:
        assert session.penalty() == 0
        adam = torch.optim.AdamW(session.parameter_groups(lr=0.0), weight_decay=0.0)
        for _ in steps(session, adam, batches, 2):
            pass
        got = session.pruner.scores()
        assert all(bool((w == 1).all()) for w in session.pruner._worth.values())
    found = [gate_derivatives(model, batch, got) for batch in batches]
    for name, scores in got.items():
        want = (found[0][name] + found[1][name]) / 2
        np.testing.assert_allclose(scores.numpy(), want, rtol=2e-3, atol=1e-7)


def test_taylor_keeps_what_the_loss_hangs_on_however_small():
    """One FFN adds next to nothing, but all of the loss is in it; what is gone stays gone."""
    model, batches = classifier(), labelled()
    options = {"estimator": "taylor", "begin": 0.0, "end": 0.5, "rounds": 2}
    with Session(model, "snip_identity", budget="heads=0.5", steps=12, **options) as session:
        adam, before = optimizer(session), None
        for i in range(12):
            model.train()
            model(**batches[i % 4])
            wanted = session.pruner.gates["layers.1.heads"]
            assert wanted.shape == (4, 4)
            (1e-3 * wanted[:, 2].sum() + model(**batches[i % 4]).loss * 1e-9).backward()
            session.after_backward()
            adam.step()
            session.after_step()
            adam.zero_grad()
            alive = torch.cat([a.flatten() for a in session.pruner._alive.values()]).clone()
            assert before is None or not bool((alive & ~before).any())
            before = alive
        model.eval()
        gated = answer(model, batches[0])
    assert int(before.sum()) == 6
    assert session.plan.masks["layers.1.heads"].keep[2]
    assert relative(answer(apply(model, session.plan), batches[0]), gated) < 1e-5


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.72])
def test_a_share_of_parameters_is_met_by_the_fewest_sub_layers(share):
    """Attentions hold 4 * 64 * 64 weights, FFNs 2 * 64 * 96: 16384 and 12288 of 86016."""
    options = {"modules_in": "parameters", "spectral": False}
    budget = f"modules={share}"
    with Session(classifier(), "snip_identity", budget=budget, steps=10, **options) as session:
        trained(session, 10, lr=1e-5)
        scores = session.pruner.scores()
    sizes = {n: (12288 if n.endswith("ffn") else 16384) / 86016 for n in scores}
    gone = {n for n, m in session.plan.masks.items() if not bool(m.keep)}
    assert sum(sizes[n] for n in gone) >= share
    removals = [{n for n in gone if n != last} for last in gone]
    assert min(sum(sizes[n] for n in less) for less in removals) < share
    assert 0 < len(gone) < 6


def test_the_mapping_that_adds_least_goes_first():
    model = classifier()
    with torch.no_grad():
        sites = find_sites(model)
        sites.linear(model, 1, "down").weight.mul_(1e-3)
        sites.linear(model, 1, "down").bias.mul_(1e-3)
        sites.linear(model, 2, "output").weight[:, 16:32].mul_(1e-3)
    for budget, name in (("modules=0.17", "layers.1.ffn"), ("heads=0.09", "layers.2.heads")):
        with Session(copy.deepcopy(model), "snip_identity", budget=budget, steps=10) as session:
            trained(session, 10, lr=1e-5)
        gone = {n for n, m in session.plan.masks.items() if not bool(m.keep.all())}
        assert gone == {name}
    assert session.plan.masks["layers.2.heads"].keep.tolist() == [True, False, True, True]


def test_the_share_removed_follows_the_schedule_for_good():
    options = {"begin": 0.0, "end": 0.5, "rounds": 5}
    with Session(classifier(), "snip_identity", budget="heads=0.5", steps=40, **options) as session:
        shares, before = [], None
        for _ in steps(session, optimizer(session), labelled(), 40):
            alive = torch.cat([a.flatten() for a in session.pruner._alive.values()]).clone()
            shares.append(12 - int(alive.sum()))
            assert before is None or not bool((alive & ~before).any())
            before = alive
    linear = [0.5 * 12 * (i + 1) / 5 for i in range(5)]
    want = [0] * 3 + [int(c + 0.5) for c in linear for _ in range(4)]
    assert shares[:23] == want
    assert set(shares[23:]) == {6}


def test_a_layer_without_heads_loses_its_attention():
    model = classifier()
    with torch.no_grad():
        find_sites(model).linear(model, 1, "output").weight.mul_(1e-4)
    with Session(model, "snip_identity", budget="heads=0.34", steps=10) as session:
        trained(session, 10, lr=1e-5)
        model.eval()
        gated = answer(model, labelled(1)[0])
    assert not session.plan.masks["layers.1.attention"].keep
    assert relative(answer(apply(model, session.plan), labelled(1)[0]), gated) < 1e-5


def test_spectral_normalisation_clips_only_above_the_bound_and_is_folded_in():
    model, batch = classifier(), labelled(1)[0]
    sites = find_sites(model)
    bound = 0.9 * largest(sites.linear(model, 1, "up"))
    with torch.no_grad():
        sites.linear(model, 0, "down").weight.mul_(0.01)
    before = copy.deepcopy(model.state_dict())
    with Session(model, "snip_identity", budget="heads=0.5", steps=5, bound=bound) as session:
        trained(session, 5, lr=0.0)
        model.eval()
        gated = answer(model, batch)
    for layer in range(3):
        for role in ("output", "up", "down"):
            assert largest(sites.linear(model, layer, role)) < bound * 1.02
    name = "roberta.encoder.layer.{}.{}.weight"
    after = model.state_dict()
    for untouched in (name.format(0, "output.dense"), name.format(1, "attention.self.query")):
        assert torch.equal(after[untouched], before[untouched])
    ratio = (
        after[name.format(1, "intermediate.dense")] / before[name.format(1, "intermediate.dense")]
    )
    assert relative(ratio, torch.full_like(ratio, 0.9)) < 0.02
    assert relative(answer(apply(model, session.plan), batch), gated) < 1e-5


def test_the_default_bound_is_above_the_median_singular_value():
    model = classifier()
    sites = find_sites(model)
    values = [
        largest(sites.linear(model, i, role)) for i in range(3) for role in ("output", "up", "down")
    ]
    with Session(model, "snip_identity", budget="heads=0.5") as session:
        assert session.pruner.bound == pytest.approx(1.5 * float(np.median(values)), rel=0.02)
        session.begin(10)
        trained(session, 10)


def test_the_penalty_is_the_weighted_norm_and_pulls_outputs_down():
    model = without_dropout(classifier())
    options = {"spectral": False, "penalty": 0.3}
    with Session(model, "snip_identity", budget="modules=0.5", steps=20, **options) as session:
        model.train()
        model(**labelled(1)[0])
        sizes = {"attention": 4 * 64 * 64, "ffn": 2 * 64 * 96}
        total = 3 * sum(sizes.values())
        norms = session.pruner._now
        want = 0.3 * sum(norms[n] * sizes[n.split(".")[2]] / total for n in norms)
        assert relative(session.penalty(), want) < 1e-5
        before = {n: float(v.detach()) for n, v in norms.items()}
        adam = optimizer(session)
        for _ in range(30):
            model(**labelled(1)[0])
            session.penalty().backward()
            adam.step()
            adam.zero_grad()
        assert all(float(v.detach()) < before[n] for n, v in session.pruner._now.items())
        trained(session, 20)


def test_one_power_iteration_a_step_follows_the_weight():
    model = classifier()
    name = "layers.1.up"
    with Session(model, "snip_identity", budget="modules=0.5", steps=5, bound=1.0) as session:
        session.pruner._u[name] = torch.nn.functional.normalize(torch.ones(96), dim=0)
        first = session.pruner._u[name]
        model.eval()(**labelled(1)[0])
        assert torch.equal(session.pruner._u[name], first), "evaluation changes nothing"
        model.train()
        for _ in range(60):
            model(**labelled(1)[0])
        gate = session.pruner.gates[name].detach()
        want = 1 / largest(find_sites(model).linear(model, 1, "up"))
        assert relative(gate, torch.full_like(gate, want)) < 0.01
        trained(session, 5)
