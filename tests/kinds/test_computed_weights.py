"""Kind: weights that are computed at each call or shared, so that a mask would not change them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from secateurs import BlockMask, SparsityPlan, apply, convert, find_sites
from secateurs import prune as prune_model
from secateurs.errors import FamilyError

PLAN = SparsityPlan({"layers.0.up": BlockMask(torch.arange(12).view(3, 4) % 2 == 0, (32, 16))})


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def masked(linear: nn.Linear) -> None:
    prune.random_unstructured(linear, "weight", 0.5)


def masked_bias(linear: nn.Linear) -> None:
    prune.random_unstructured(linear, "bias", 0.5)


def doubled(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "weight", Doubled())


def a_buffer(linear: nn.Linear) -> None:
    weight = linear.weight.detach()
    del linear.weight
    linear.register_buffer("weight", weight)


def an_attribute(linear: nn.Linear) -> None:
    weight = linear.weight.detach()
    del linear.weight
    linear.weight = weight


WAYS: dict[str, Callable[[nn.Linear], None]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "a parametrization of one's own": doubled,
    "a mask of torch's pruning": masked,
    "a mask of the bias": masked_bias,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "a buffer": a_buffer,
    "a tensor that is no parameter": an_attribute,
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", ["attention.self.query", "intermediate.dense", "output.dense"])
def test_a_weight_that_is_computed_is_refused_everywhere(way, path):
    model = tiny_model("bert")
    WAYS[way](model.encoder.layer[1].get_submodule(path))
    doors = (
        find_sites,
        lambda m: apply(m, PLAN),
        lambda m: convert(m, PLAN),
        lambda m: prune_model(m, method="magnitude", budget="heads=0.5"),
    )
    for door in doors:
        with pytest.raises(FamilyError, match=r"permanent|plain parameter"):
            door(model)


@pytest.mark.parametrize("path", ["attention.self.query", "intermediate.dense"])
def test_made_permanent_it_is_pruned_like_any_other(batch, path):
    model = tiny_model("bert")
    dense = model.encoder.layer[0].get_submodule(path)
    parametrizations.weight_norm(dense)
    parametrize.remove_parametrizations(dense, "weight")
    masked(dense)
    prune.remove(dense, "weight")
    want = answer(apply(model, PLAN), batch)
    assert relative(want, answer(model, batch)) > 1e-3
    assert relative(answer(convert(model, PLAN), batch), want) < 1e-5


@pytest.mark.parametrize("door", [apply, convert])
def test_linears_that_share_a_parameter_are_refused(door):
    model = tiny_model("bert")
    first, second = (model.encoder.layer[i].intermediate.dense for i in (0, 1))
    second.weight = first.weight
    with pytest.raises(FamilyError, match=r"layers\.1\.up shares one with layers\.0\.up"):
        door(model, PLAN)
