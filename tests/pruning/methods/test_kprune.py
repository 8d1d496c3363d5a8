"""K-prune's mixed score: its two parts by hand, and what they are weighed by."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import find_sites
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.pruning.run import score

UNITS = "heads=0.5,neurons=0.5"


@pytest.fixture
def model():
    return tiny_model("roberta").eval()


@pytest.fixture
def batch():
    ids = torch.randint(3, 100, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[2, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def scored(model, batch, **options):
    return score(model, [batch], method="kprune", budget=UNITS, progress=False, **options)


def macs(name):
    """Multiply-accumulates for each unit: 4 heads in four linears of 64 x 64, 96 neurons in two."""
    return 4 * 64 * 64 / 4 if name.endswith("heads") else 2 * 64


def weighed(name):
    return 64.0 if name.endswith("heads") else 1.0


@torch.no_grad()
def test_the_representation_is_the_mean_energy_of_what_a_unit_adds(model, batch):
    found = scored(model, batch, predictive=0.0, representation=1.0)
    real = batch["attention_mask"].bool()
    for index, layer in enumerate(model.roberta.encoder.layer):
        for linear, kind, units in (
            (layer.attention.output.dense, "heads", 4),
            (layer.output.dense, "neurons", 96),
        ):
            seen = []
            hook = linear.register_forward_pre_hook(lambda _, args, kept=seen: kept.append(args[0]))
            model(**batch)
            hook.remove()
            phi, weight = seen[0][real].double(), linear.weight.double()
            energy = (phi.square().mean(0) * weight.square().mean(0)).view(units, -1).sum(1)
            name = f"layers.{index}.{kind}"
            want = energy * weighed(name) / macs(name)
            torch.testing.assert_close(found[name], want, rtol=1e-5, atol=0)


def test_the_predictions_count_by_fisher_information(model, batch):
    """Over many draws, the squared derivative of a drawn class is the Fisher information, which the
    exact sum over classes gives."""
    many = [
        scored(model, batch, predictive=1.0, representation=0.0, seed=seed) for seed in range(300)
    ]
    sites, size = find_sites(model), 6
    with Gates(model, sites) as gates:
        ones = torch.ones(size, 4, requires_grad=True)
        gates["layers.1.heads"] = ones
        likelihoods = (model(**batch).logits / 2).log_softmax(-1)
        information = torch.zeros(4)
        for c in range(likelihoods.shape[1]):
            chance = likelihoods[:, c].exp().detach()
            (g,) = torch.autograd.grad(likelihoods[:, c].sum(), ones, retain_graph=True)
            information += (chance[:, None] * g.square()).sum(0)
    want = information.double() / size / 2 * 64 / macs("layers.1.heads")
    mean = torch.stack([s["layers.1.heads"] for s in many]).mean(0)
    torch.testing.assert_close(mean, want, rtol=0.15, atol=0)


def test_labels_change_nothing(model, batch):
    labels = {**batch, "labels": torch.zeros(6, dtype=torch.long)}
    one, two = scored(model, batch), scored(model, labels)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_of_nothing_are_refused(model, batch):
    with pytest.raises(MethodError, match="at least 0, one of them above"):
        scored(model, batch, predictive=0.0, representation=0.0)
