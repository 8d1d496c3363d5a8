"""SMP's network, sampling and loss, against computations of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_model
from training import labelled

from secateurs import Budget, find_sites, prune
from secateurs.errors import BudgetError, CheckpointError, MethodError
from secateurs.pruning.smp import (
    MapScorer,
    SMPPruner,
    representation_loss,
    sampled_heads,
    similarities,
    square_maps,
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlabelled(count=3):
    return [{k: v for k, v in b.items() if k != "labels"} for b in labelled(count)]


def test_the_loss_is_zero_for_the_full_mask_and_positive_for_others():
    x = torch.randn(6, 10, generator=random())
    assert float(representation_loss(x, x)) == pytest.approx(0, abs=1e-7)
    assert float(representation_loss(x + torch.randn(6, 10, generator=random(1)), x)) > 1e-3


def test_the_loss_is_that_of_the_formula():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 7))

    def pairs(x):
        x = x - x.mean(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        e = np.exp((10 * x @ x.T).reshape(-1, 2))
        return e / e.sum(1, keepdims=True)

    p, q = pairs(a), pairs(b)
    want = (q * (np.log(q) - np.log(p))).mean()
    assert float(representation_loss(torch.tensor(a), torch.tensor(b))) == pytest.approx(want)
    assert similarities(torch.tensor(a)).shape == (8, 2)


def test_the_network_has_the_published_shape():
    network = MapScorer(random())
    convolutions = [m for m in network.layers if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (8, 1, 4, 4), (16, 8, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (2, 128, 4, 4)
    ]  # fmt: skip
    assert all(c.bias is None for c in convolutions)
    norms = [m for m in network.layers if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 4
    assert abs(float(norms[0].weight.mean().detach()) - 1) < 0.02
    scores = network.eval()(torch.rand(5, 1, 128, 128, generator=random()))
    assert scores.shape == (5, 2)
    assert bool(((scores > 0) & (scores < 2)).all())


@pytest.mark.parametrize("tokens", [9, 128, 140])
def test_maps_are_squares_without_the_rows_of_padding(tokens):
    attention = torch.rand(2, 3, tokens, tokens, generator=random()) + 0.1
    mask = torch.ones(2, tokens)
    mask[1, 4:] = 0
    maps = square_maps(attention, mask)
    assert maps.shape == (2, 3, 128, 128)
    side = min(tokens, 128)
    assert torch.equal(maps[0, :, :side, :side], attention[0, :, :side, :side])
    assert torch.equal(maps[1, :, :4, :side], attention[1, :, :4, :side])
    assert not bool(maps[1, :, 4:].any())
    assert not bool(maps[:, :, side:].any())


@pytest.mark.parametrize(("heads", "keep"), [(12, 6), (16, 8), (5, 2)])
def test_sampled_masks_hold_the_heads_wanted_and_prefer_high_scores(heads, keep):
    """H is the number of heads, whatever the number of layers."""
    scores = torch.zeros(heads, requires_grad=True)
    counts = torch.zeros(heads)
    for seed in range(300):
        mask = sampled_heads(scores + torch.linspace(0, 2, heads), keep, random(seed))
        assert mask.shape == (heads,)
        assert set(mask.detach().round(decimals=5).tolist()) <= {0.0, 1.0}
        assert int((mask > 0.5).sum()) == keep
        counts += mask.detach()
    assert counts[-1] > 1.5 * counts[0]
    (mask * torch.arange(heads)).sum().backward()
    assert scores.grad.abs().sum() > 0


def test_every_layer_loses_as_many_heads_where_layers_and_heads_differ():
    model = tiny_model("bert", num_attention_heads=8, num_hidden_layers=3)
    plan = prune(model, unlabelled(), method="smp", budget="heads=0.25", progress=False)
    assert [int(m.keep.sum()) for m in plan.masks.values()] == [6, 6, 6]


def test_meta_training_moves_the_scorer_and_not_the_model():
    model = tiny_model("bert")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruner = SMPPruner()
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    start = {k: v.clone() for k, v in pruner.scorer.state_dict().items()}
    losses = [pruner.meta_step(batch) for batch in unlabelled()]
    assert all(loss > 0 for loss in losses)
    first = "layers.0.weight"
    assert not torch.equal(pruner.scorer.state_dict()[first], start[first])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert np.isnan(pruner.meta_step({"input_ids": torch.ones(1, 4).long()}))


def test_scores_are_means_over_examples_not_batches():
    model = tiny_model("bert")
    pruner = SMPPruner()
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    with torch.no_grad():  # scores of a fresh network barely differ
        for parameter in pruner.scorer.parameters():
            parameter.mul_(8)
    pruner._round = 1
    (batch,) = unlabelled(1)
    pruner.observe({k: v[:1] for k, v in batch.items()})
    pruner.observe({k: v[1:] for k, v in batch.items()})
    split = torch.stack(list(pruner.scores().values()))
    pruner._sums, pruner._examples = None, 0
    pruner.observe(batch)
    torch.testing.assert_close(split, torch.stack(list(pruner.scores().values())))


def test_a_saved_scorer_prunes_another_model_alike(tmp_path):
    model, batches = tiny_model("bert"), unlabelled()
    pruner = SMPPruner()
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    for batch in batches:
        pruner.meta_step(batch)
    pruner.save(tmp_path / "scorer")
    pruner._round = 1
    for batch in batches:
        pruner.observe(batch)
    saved = str(tmp_path / "scorer")
    again = prune(model, batches, method="smp", budget="heads=0.5", artifact=saved, progress=False)
    assert again == pruner.plan()
    (tmp_path / "scorer").write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="cannot read a scorer"):
        prune(model, batches, method="smp", budget="heads=0.5", artifact=saved)


def test_labels_change_nothing():
    batches = labelled(2)
    options = {"method": "smp", "budget": "heads=0.5", "progress": False}
    assert prune(tiny_model("roberta"), batches, **options) == prune(
        tiny_model("roberta"), [{k: v for k, v in b.items() if k != "labels"} for b in batches],
        **options,
    )  # fmt: skip


def test_bad_budgets_and_options_are_refused():
    model = tiny_model("bert")
    with pytest.raises(BudgetError, match="a multiple of 1/4, got heads"):
        prune(model, unlabelled(), method="smp", budget="heads=0.4")
    with pytest.raises(MethodError, match="at least one round"):
        prune(model, unlabelled(), method="smp", budget="heads=0.5", meta_rounds=0)
