"""compress: the whole way on a tiny model whose times are made up, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from support.made_up_times import made_up_table
from support.models import answer, relative
from support.tiny_models import tiny_model

from secateurs import Budget, apply, compress, explain, find_sites
from secateurs.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    MeasurementError,
    MethodError,
    PlanError,
)
from secateurs.search import search as module
from secateurs.search.latency_table import LatencyTable
from secateurs.search.sensitivity import Judge, sensitivities

SHAPES = ((2, 8),)


def data(count=6, seed=3):
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, 100, (8, 12), generator=random)
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


@pytest.fixture
def bert():
    return tiny_model("bert").eval()


class Clock:
    """Times of a model that has six times as many layers' worth of overhead as it measures."""

    def __init__(self, monkeypatch, slower=1.0, spread=0.0):
        self.slower, self.spread, self.measured = slower, spread, []
        monkeypatch.setattr(LatencyTable, "measured", classmethod(lambda *_, **__: self.table()))
        monkeypatch.setattr(module.Search, "_times", self.times)

    def table(self):
        return made_up_table(find_sites(tiny_model("bert")).layers[0])

    def times(self, fast):
        """A converted model's by what it kept, as the table has it, but slower."""
        conversion = explain_plan(fast)
        sites = find_sites(tiny_model("bert"))
        kept = [sites.keep(conversion, i) for i in range(3)]
        ms = 6.0 + sum(
            (1.0 if k.attention or k.ffn else 0.0) + int(k.heads.sum()) + int(k.neurons.sum()) / 32
            for k in kept
        )
        self.measured.append(ms * self.slower)
        return module.Times(ms * self.slower, self.spread * ms, 60.0)


def explain_plan(fast):
    from secateurs.conversion.report import conversion_of

    return conversion_of(fast).plan


def test_the_time_is_met_and_the_result_computes_what_its_plan_says(bert, monkeypatch):
    Clock(monkeypatch)
    before = copy.deepcopy(bert.state_dict())
    found = compress(bert, data(), Budget(speedup=3), shapes=SHAPES, progress=False)
    assert found.measured <= found.asked == 20
    assert found.predicted == pytest.approx(found.measured)
    assert found.speedup >= 3
    batch = data(1)[0]
    assert (
        relative(answer(found.model, batch), answer(apply(found.recovered, found.plan), batch))
        < 1e-5
    )
    assert all(torch.equal(before[name], value) for name, value in bert.state_dict().items())
    assert explain(found.model)


def test_noise_is_refused_unless_forced(bert, monkeypatch):
    Clock(monkeypatch, spread=0.6)
    with pytest.raises(MeasurementError, match="spread"):
        compress(bert, data(), "speedup=3", shapes=SHAPES, progress=False)
    assert compress(bert, data(), "speedup=3", shapes=SHAPES, force=True, progress=False).plan.masks


def test_the_same_data_give_the_same_plan(bert, monkeypatch):
    Clock(monkeypatch)
    plans = [
        compress(bert, data(), "speedup=4", shapes=SHAPES, effort="normal", progress=False).plan
        for _ in range(2)
    ]
    assert plans[0].masks.keys() == plans[1].masks.keys()
    assert all(plans[0].masks[name].equal(plans[1].masks[name]) for name in plans[0].masks)


def test_more_effort_is_never_further_from_the_dense_model(bert, monkeypatch):
    Clock(monkeypatch)
    quick, normal = (
        compress(bert, data(), "speedup=4", shapes=SHAPES, effort=effort, progress=False)
        for effort in ("quick", "normal")
    )
    assert normal.distance <= quick.distance + 1e-9
    assert normal.measured <= normal.asked


def test_a_budget_above_the_dense_time_removes_nothing(bert, monkeypatch):
    Clock(monkeypatch)
    found = compress(bert, data(), Budget(latency=40), shapes=SHAPES, progress=False)
    assert not found.plan.masks
    assert found.distance == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"budget": "heads=0.5"}, BudgetError, "latency or speedup"),
        ({"budget": "speedup=1"}, BudgetError, "speedup above 1"),
        ({"budget": "speedup=3,heads=0.5"}, BudgetError, "stand alone"),
        ({"budget": "speedup=3,latency=4"}, BudgetError, "stand alone"),
        ({"budget": "latency=fast"}, BudgetError, "latency like 4ms"),
        ({"budget": "latency=0"}, BudgetError, "latency above 0"),
        ({"budget": "latency=inf"}, BudgetError, "latency above 0"),
        ({"effort": "much"}, MethodError, "quick, normal, long"),
        ({"batches": []}, DataError, "at least one batch"),
        ({"distill_on": ["words"]}, DataError, "batches as dicts of tensors, got 'words'"),
        ({"shapes": {}}, DataError, "shapes"),
        ({"shapes": {(1, 8): 0.0}}, DataError, "weights above 0"),
        ({"shapes": {(1, 8): float("nan")}}, DataError, "weights above 0"),
        ({"method": "dsp"}, MethodError, "Session"),
        ({"ridge": "much"}, ArgumentError, "ridge"),
        ({"precision": "int4"}, PlanError, "bfloat16 or int8 or auto, got 'int4'"),
    ],
)
def test_bad_input_is_refused_in_words(bert, monkeypatch, change, error, words):
    Clock(monkeypatch)
    arguments = {"batches": data(), "budget": "speedup=3", "shapes": SHAPES, **change}
    with pytest.raises(error, match=words):
        compress(
            bert, arguments.pop("batches"), arguments.pop("budget"), progress=False, **arguments
        )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("heads=0.5",), BudgetError, "latency or speedup"),
        (("speedup=3", "much"), MethodError, "quick, normal, long"),
        (("speedup=3", 24), ArgumentError, "effort to be a string"),
        ((3.0,), ArgumentError, "budget"),
    ],
)
def test_a_search_refuses_what_it_cannot_meet(bert, monkeypatch, arguments, error, words):
    clock = Clock(monkeypatch)
    search = module.Search(bert, data(), shapes=SHAPES, progress=False)
    with pytest.raises(error, match=words):
        search.meet(*arguments)
    assert not clock.measured


def test_a_judge_measures_divergence_of_classes_and_cosine_of_states(bert):
    batch = data(1)[0]
    other = tiny_model("roberta").eval()
    with torch.no_grad():
        other.classifier.out_proj.bias += torch.tensor([0.5, -0.5])[: other.config.num_labels]
    classes = tiny_model("roberta").eval()
    given = Judge(classes, [batch])(other)
    with torch.no_grad():
        p, q = (m(**batch).logits.detach().double().softmax(1) for m in (classes, other))
    assert given == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    moved = copy.deepcopy(bert)
    with torch.no_grad():
        moved.encoder.layer[2].output.dense.bias.normal_()
    pooled = []
    for model in (bert, moved):
        states = model(**batch).last_hidden_state.detach().double()
        weights = batch["attention_mask"][..., None].double()
        pooled.append((states * weights).sum(1) / weights.sum(1))
    want = float(1 - torch.nn.functional.cosine_similarity(*pooled).mean())
    assert Judge(bert, [batch])(moved) == pytest.approx(want, rel=1e-6)
    assert Judge(bert, [batch])(bert) == pytest.approx(0, abs=1e-12)


def test_a_sublayer_that_does_nothing_is_not_sensitive(bert):
    with torch.no_grad():
        bert.encoder.layer[1].output.dense.weight.zero_()
    found = sensitivities(bert, find_sites(bert), Judge(bert, data(2)), progress=False)
    assert found[1][1] == min(value for pair in found for value in pair)
    assert found[1][1] < 1e-3 * found[1][0]


def test_a_fit_that_is_worse_on_other_examples_is_left_out(bert, monkeypatch, caplog):
    Clock(monkeypatch)

    def spoilt(model, plan, batches, ridge, progress):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            spoilt.embeddings.word_embeddings.weight.normal_()
        return spoilt

    monkeypatch.setattr(module, "refit", spoilt)
    found = compress(bert, data(), "speedup=3", shapes=SHAPES, progress=False)
    assert "left out" in caplog.text
    assert all(
        torch.equal(tensor, found.recovered.state_dict()[name])
        for name, tensor in bert.state_dict().items()
    )


def test_the_nearest_of_all_candidates_is_taken(bert, monkeypatch):
    Clock(monkeypatch)
    search = module.Search(bert, data(), shapes=SHAPES, progress=False)
    limit = 0.99 * 20

    def distance(candidate):
        plan = candidate.choices.plan(candidate.choices.of_least_error(limit, candidate.weights))
        return search._judge(apply(search._recover(plan, batches=search._fitted), plan))

    monkeypatch.setattr(module, "_TRIED", 1000)
    distances = [distance(candidate) for candidate in search._way(search._precisions[0]).candidates]
    assert len({round(d, 9) for d in distances}) > 1
    found = search.meet(Budget(speedup=3))
    assert found.distance == pytest.approx(min(distances), rel=1e-3)


@pytest.mark.parametrize("method", ["kprune", "obs", "gradient", "magnitude"])
def test_one_method_may_be_named(bert, monkeypatch, method):
    Clock(monkeypatch)
    found = compress(bert, data(), "speedup=3", shapes=SHAPES, method=method, progress=False)
    assert found.measured <= found.asked
