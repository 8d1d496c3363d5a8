"""Hazard: a function that is documented not to change a model leaves it in evaluation mode, or with
frozen parameters, and the caller trains on without dropout."""

from __future__ import annotations

import math

import pytest
import torch
from support.made_up_times import made_up_table
from support.tiny_models import tiny_model

import secateurs as sc
from secateurs.pruning import METHODS
from secateurs.pruning.run import score
from secateurs.search import LatencyTable, Search, latency_table
from secateurs.search import search as search_module

PLAN = sc.SparsityPlan({"layers.1.heads": sc.HeadMask(torch.tensor([True, True, False, True]))})
BUDGETS = {"heads": "heads=0.5", "modules": "modules=0.5", "patterns": "patterns=0.5"}
BUDGETS |= {"blocks": "blocks=0.5,block=8", "weights": "weights=0.5", "neurons": "neurons=0.5"}


def data():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (2, 4, 6), generator=random)
    labels = torch.tensor([0, 1, 0, 1])
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": labels} for i in ids]


@pytest.fixture
def model():
    """A model that is trained, all but one module and one parameter of it."""
    model = tiny_model("roberta").train()
    model.roberta.encoder.layer[1].attention.eval()
    next(model.parameters()).requires_grad_(False)
    return model


def state(model):
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return modes, flags, gradients, weights


def same(one, other):
    return one[:3] == other[:3] and all(torch.equal(one[3][n], w) for n, w in other[3].items())


@pytest.fixture
def made_up(monkeypatch):
    """Times of no clock."""

    def table(_, model, *args, **options):
        assert not any(module.training for module in model.modules())
        return made_up_table(sc.find_sites(model).layers[0])

    monkeypatch.setattr(LatencyTable, "measured", classmethod(table))
    monkeypatch.setattr(
        search_module.Search, "_times", lambda *_: search_module.Times(19.8, 0.0, 60.0)
    )


def check(model, use, **others):
    models = {"model": model, **others}
    before = {name: state(one) for name, one in models.items()}
    use()
    for name, one in models.items():
        assert same(before[name], state(one)), name


@pytest.mark.parametrize(
    "name", [name for name, row in METHODS.items() if sc.Needs.TRAINING not in row.needs]
)
def test_methods_leave_modes_and_flags(model, name):
    kind = next(kind for kind in BUDGETS if kind in METHODS[name].pruner.produces)
    options = {"method": name, "budget": BUDGETS[kind], "progress": False}
    check(model, lambda: sc.prune(model, data(), **options))
    if not METHODS[name].pruner.chooses:
        check(model, lambda: score(model, data(), **options))


@pytest.mark.parametrize("use", [sc.apply, sc.convert])
def test_plans_leave_modes_and_flags(model, use):
    check(model, lambda: use(model, PLAN))


def test_refit_leaves_modes_and_flags(model):
    check(model, lambda: sc.refit(model, PLAN, data(), progress=False))


def test_distillation_leaves_modes_and_flags(model):
    teacher = tiny_model("roberta").train()
    check(
        model,
        lambda: sc.distill(model, PLAN, data(), teacher=teacher, steps=1, progress=False),
        teacher=teacher,
    )


def test_a_search_leaves_modes_and_flags(model, made_up):
    check(model, lambda: sc.compress(model, data(), "speedup=3", shapes=((1, 6),), progress=False))
    search = Search(model, data(), shapes=((1, 6),), method="obs", progress=False)
    check(model, lambda: search.meet(sc.Budget(speedup=3)))
    check(model, lambda: search.timed(PLAN))


def test_a_search_that_ends_in_an_error_leaves_modes_and_flags(model, made_up):
    def refused():
        with pytest.raises(sc.SecateursError, match="at least 6 ms"):
            sc.compress(model, data(), "latency=2", shapes=((1, 6),), progress=False)

    check(model, refused)


def test_a_table_leaves_modes_and_flags(model, monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(latency_table, "_OFF", math.inf)  # whatever else the machine does
    check(
        model,
        lambda: LatencyTable.measured(model, {(1, 6): 1.0}, seconds=0.0, progress=False),
    )
