"""DCIL: gradients against two plain copies of the model, losses by hand, masks that move."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.training import classifier, labelled, optimizer, steps

from secateurs import find_sites
from secateurs.errors import DataError, MethodError
from secateurs.pruning.methods.dcil import divergence, refined
from secateurs.pruning.session import Session

STEPS = 60
QUERY = "layers.1.query"
TOTAL = 3 * (4 * 64 * 64 + 2 * 64 * 96)
NORM = "roberta.encoder.layer.0.output.LayerNorm.weight"
HEAD = "classifier.out_proj.weight"
BIAS = "roberta.encoder.layer.0.output.dense.bias"


def test_a_refined_weight_is_the_weight_and_learns_where_it_is_masked():
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    gate = torch.tensor([1.0, 0.0, 0.0])
    result = refined(weight, gate)
    assert torch.equal(result, weight)
    result.backward(torch.tensor([5.0, 7.0, 9.0]))
    assert weight.grad.tolist() == [0, 7, 9]
    assert not refined(weight, None).requires_grad


def test_the_divergence_by_hand():
    random = np.random.default_rng(0)
    given, target = random.normal(size=(2, 4, 3))
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (given, target))
    want = 4 * (q * (np.log(q) - np.log(p))).sum(-1).mean()
    one, other = (torch.tensor(x, requires_grad=True) for x in (given, target))
    got = divergence(one, other)
    assert float(got.detach()) == pytest.approx(want)
    got.backward()
    assert other.grad is None
    assert one.grad is not None
    assert float(divergence(torch.tensor([[3.0]]), torch.tensor([[1.0]]))) == 2


@pytest.mark.parametrize("together", [False, True])
def test_every_parameter_learns_from_the_paths_it_is_in(together):
    """Part and full path as two plain models: one with zeroed weights, one with other norms."""
    model, batch = classifier().eval(), labelled(1)[0]
    sites = find_sites(model)
    with Session(model, "dcil", budget="weights=0.7", steps=STEPS) as session:
        pruner = session.pruner
        random = torch.Generator().manual_seed(0)
        masks = {}
        for name, weight in pruner.linear_weights().items():
            masks[name] = (torch.rand(weight.shape, generator=random) < 0.5).float()
            pruner.gates[name] = masks[name]
        with torch.no_grad():
            for own in pruner._copies.values():
                own += 0.05 * torch.randn(own.shape, generator=random)
        part, full = copy.deepcopy(model), copy.deepcopy(model)
        for module in (*part.modules(), *full.modules()):
            module.__dict__.pop("forward", None)  # the gates of the model they were copied from
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
        with torch.no_grad():
            for name, mask in masks.items():
                _, layer, role = name.split(".")
                sites.linear(part, int(layer), role).weight.mul_(mask)
            for name, own in pruner._copies.items():
                full.get_parameter(name).copy_(own)
        pruner._done = STEPS if together else 0
        loss = model(**batch).loss + session.penalty()
        loss.backward()
    a, b = part(**batch), full(**batch)
    want = a.loss + b.loss
    if together:
        p, q = ((x.logits / 2).softmax(-1) for x in (a, b))
        forward = (q.detach() * (q.detach().log() - p.log())).sum(-1).mean()
        backward = (p.detach() * (p.detach().log() - q.log())).sum(-1).mean()
        want = want + 4 * forward + 4 * backward
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    want.backward()
    close = {"rtol": 1e-3, "atol": 1e-6}
    for name, mask in masks.items():
        _, layer, role = name.split(".")
        got, of_part, of_full = (
            sites.linear(m, int(layer), role).weight.grad for m in (model, part, full)
        )
        torch.testing.assert_close(got, mask * of_part + (1 - mask) * of_full, **close)
    for name in (NORM, HEAD):
        mine, own = model.get_parameter(name).grad, pruner._copies[name].grad
        torch.testing.assert_close(mine, part.get_parameter(name).grad, **close)
        torch.testing.assert_close(own, full.get_parameter(name).grad, **close)
    both = part.get_parameter(BIAS).grad + full.get_parameter(BIAS).grad
    torch.testing.assert_close(model.get_parameter(BIAS).grad, both, **close)


def test_the_full_path_has_norms_and_a_head_of_its_own_and_nothing_else():
    model = classifier()
    with Session(model, "dcil", budget="weights=0.7", steps=STEPS) as session:
        names = set(session.pruner._copies)
    norms = {n for n, _ in model.named_parameters() if "LayerNorm" in n}
    assert len(norms) == 2 * (1 + 2 * 3)
    assert names == norms | {n for n, _ in model.named_parameters() if n.startswith("classifier")}


def test_masks_follow_the_schedule_by_the_dense_weights_and_weights_return():
    model = classifier()
    with Session(model, "dcil", budget="weights=0.7", steps=STEPS, every=4, end=0.8) as session:
        pruner, gone, returned = session.pruner, {}, 0
        before = {}
        for i in steps(session, optimizer(session, lr=1e-2), labelled(), STEPS):
            gates = dict(pruner.gates)
            if (i + 1) % 4 == 0:
                gone[i + 1] = sum(int((gate == 0).sum()) for gate in gates.values())
                sizes = [w.detach().abs() for w in pruner.linear_weights().values()]
                kept = torch.cat([s[g != 0] for s, g in zip(sizes, gates.values(), strict=True)])
                away = torch.cat([s[g == 0] for s, g in zip(sizes, gates.values(), strict=True)])
                assert float(kept.min()) >= float(away.max())
                returned += sum(
                    int(((g != 0) & (before[n] == 0)).sum()) for n, g in gates.items() if before
                )
                before = gates
            else:
                assert all(torch.equal(gates[n], before[n]) for n in before)
    for done, count in gone.items():
        share = 0.7 * (1 - (1 - min(done / 48, 1)) ** 3)
        assert count == int(share * TOTAL + 0.5), done
    assert returned > 0


def test_the_copies_learn_at_the_rate_of_the_model():
    with Session(classifier(), "dcil", budget="weights=0.7", steps=STEPS) as session:
        assert [group["lr"] for group in session.parameter_groups(lr=3e-4)] == [3e-4, 3e-4]


def test_what_would_be_computed_wrong_is_refused():
    model, batch = classifier(), labelled(1)[0]
    with Session(model, "dcil", budget="weights=0.7", steps=STEPS) as session:
        model(**{name: value for name, value in batch.items() if name != "labels"})
        with pytest.raises(DataError, match="got input_ids, attention_mask"):
            session.penalty()
        model.roberta.encoder.layer[0].gradient_checkpointing = True
        model(**batch)
        with pytest.raises(MethodError, match="without gradient checkpointing"):
            session.penalty()
