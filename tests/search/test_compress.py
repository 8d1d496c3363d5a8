"""compress: the whole way on a tiny model whose times are made up, and what it refuses."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from support.made_up_times import made_up_table
from support.models import answer, relative
from support.tiny_models import tiny_model

from secateurs import Budget, SparsityPlan, apply, compress, convert, explain, find_sites
from secateurs.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    MeasurementError,
    MethodError,
    PlanError,
)
from secateurs.search import latency_table, layer_times
from secateurs.search import search as module
from secateurs.search.latency_table import LatencyTable
from secateurs.search.layer_times import LayerTimes, Measured
from secateurs.search.precisions import Precision, own
from secateurs.search.sensitivity import Judge, sensitivities
from secateurs.search.sizes import Size, full_size

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


def whatever_else_the_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_OFF", math.inf)
    monkeypatch.setattr(latency_table, "_BUSY", math.inf)


def test_a_table_is_measured_once_and_kept(bert, monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    whatever_else_the_machine_does(monkeypatch)
    table = LatencyTable.measured(bert, {(1, 8): 1.0}, seconds=0.0, progress=False)
    assert len(table.layers) == 3
    assert table.stock > 0
    assert all(ms <= 0 for ms in table.layers[0].heads.values())
    (file,) = tmp_path.glob("latency-*.json")
    monkeypatch.setattr(latency_table, "measured_times", None)
    assert LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False) == table
    file.write_text(json.dumps({"stock": "fast"}))
    with pytest.raises(TypeError):  # what is damaged is measured again
        LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False)


@pytest.mark.parametrize(("tries", "raises"), [([-1.0, 1.0], False), ([-1.0, -1.0, 1.0], True)])
def test_a_table_that_does_not_add_up_is_measured_once_more(
    bert, monkeypatch, tmp_path, tries, raises
):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    left = iter(tries)

    def measured(*_):
        removed = (next(left) - 6.0) / 3
        return Measured(12.0, 6.0, (LayerTimes({0: removed}, {0: removed}, removed),) * 3, 0.0)

    monkeypatch.setattr(latency_table, "measured_times", measured)
    if raises:
        with pytest.raises(MeasurementError, match="add up, got -1 ms"):
            LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False)
        assert not list(tmp_path.glob("latency-*.json"))
    else:
        assert LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False).least == 1.0


def test_a_table_measured_in_parts_is_that_of_one_part(bert, monkeypatch, tmp_path):
    """Sizes are compared with the full size of their own part, however much slower that part is;
    one part holds no more than the layers of the model. Probes of what is large have two layers."""
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(layer_times, "_CACHED", 0)
    whatever_else_the_machine_does(monkeypatch)
    parts, slower = [], 0.0

    def weights(call) -> float:
        return 1.0 + sum(held.numel() for held in call.func.encoder.buffers())

    def sampled(calls, *_, **__):
        parts.append([weights(call) for call in calls])
        # What runs any layers has a time before the first.
        return [[held + slower * len(parts) + 500.0 * (held > 1)] * 3 for held in parts[-1]]

    monkeypatch.setattr(layer_times, "interleave", sampled)
    together = LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False)
    assert len(parts) == 1
    parts.clear()
    slower = 1000.0
    monkeypatch.setattr(layer_times, "_AT_ONCE", 0)
    next(tmp_path.glob("latency-*.json")).unlink()
    table = LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False)
    assert len(parts) > 3
    assert table.layers[0].removed < table.layers[0].heads[0] < 0
    assert table.layers == together.layers
    assert table.dense == together.dense + slower
    layers = parts[0][1] - 1
    assert together.dense == 1 + layers + 500
    assert together.layers[0].removed == pytest.approx(-layers / 3)
    assert together.least == pytest.approx(1 + 500)
    again = layer_times._FULL  # samples of the full size, which is kept
    probes = [parts[0][2:3] + parts[0][2 + again :], *(part[again:] for part in parts[1:])]
    assert all(sum(part) < 1.1 * (1 + layers) for part in probes)


@pytest.mark.parametrize(("spread", "kept"), [(0.2, 1), (0.4, 0)])
def test_a_table_of_a_busy_minute_is_not_kept(bert, monkeypatch, tmp_path, caplog, spread, kept):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        layer_times,
        "interleave",
        lambda calls, *_, **__: (
            [[1 - spread / 2, 1 - spread / 2, 1, 1 + spread / 2, 1 + spread / 2]] * len(calls)
        ),
    )
    table = LatencyTable.measured(bert, {(1, 8): 1.0}, progress=False)
    assert table.spread == pytest.approx(spread)
    assert len(list(tmp_path.glob("latency-*.json"))) == kept
    assert ("does other work" in caplog.text) == (not kept)


def test_a_table_depends_on_shapes_dtype_and_sizes(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    small, low = tiny_model("bert", intermediate_size=64), copy.deepcopy(bert).bfloat16()
    paths = {
        latency_table._path(model, find_sites(model), mix, precision)
        for model, mix, precision in (
            (bert, {(1, 8): 1.0}, own(bert)),
            (bert, {(1, 9): 1.0}, own(bert)),
            (bert, {(1, 8): 1.0}, Precision("int8", codes="int8")),
            (bert, {(1, 8): 1.0}, Precision("bfloat16", torch.bfloat16)),
            (low, {(1, 8): 1.0}, own(low)),
            (small, {(1, 8): 1.0}, own(small)),
        )
    }
    assert len(paths) == 6


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


def test_times_of_layers_are_those_of_models_in_which_all_have_one_size(
    bert, monkeypatch, tmp_path
):
    """The clock is a sum over layers of what they keep, with something for each layer and each
    model; between sizes that are measured, times are straight lines."""
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path))
    monkeypatch.setattr(layer_times, "token_inputs", lambda *_: {})

    class Clocked(Precision):
        def converted(self, copied, plan, tokens, batches=None):
            kept = [find_sites(bert).keep(plan, index) for index in range(3)]
            units = [(int(one.heads.sum()), int(one.neurons.sum())) for one in kept]
            copied.ms = 10 + sum(3.0 * h + n / 8 + (h + n > 0) for h, n in units)
            return copied

    def sampled(calls, *_, **__):
        return [[getattr(call.func, "ms", 99.0)] * 9 for call in calls]

    monkeypatch.setattr(layer_times, "interleave", sampled)
    table = LatencyTable.measured(bert, {(1, 8): 1.0}, precision=Clocked("own"), progress=False)
    sites = find_sites(bert)
    shape = sites.layers[0]
    full = 10 + 3 * (3 * shape.heads + shape.neurons / 8 + 1)
    assert (table.stock, table.dense) == (99.0, pytest.approx(full))
    assert table.predict([full_size(shape)] * 3) == pytest.approx(full)
    assert table.least == pytest.approx(10)
    kept = [Size(1, shape.neurons), Size(shape.heads, 32), Size(0, 0)]
    want = 10 + sum(3 * h + n / 8 + (h + n > 0) for h, n in kept)
    assert table.predict(kept) == pytest.approx(want)


@pytest.mark.parametrize("sizes", [[0, 4], [0, 1, 2, 3, 4], list(range(0, 1537, 96))])
def test_sizes_that_are_measured_reach_from_none_to_all(sizes):
    some = layer_times._some(sizes)
    assert some == sorted(set(some))
    assert {*sizes[:3], sizes[-1]} <= set(some) <= set(sizes)
    assert len(some) <= 7


def test_a_probe_keeps_the_layers_that_it_should(bert):
    """A probe of the full size is the first two layers."""
    sites = find_sites(bert)
    probe = convert(bert, layer_times._probe(sites, [0, 1], full_size(sites.layers[0])))
    short = copy.deepcopy(bert)
    plan = SparsityPlan({"layers.2.attention": gone(), "layers.2.ffn": gone()})
    batch = data(1)[0]
    assert relative(answer(probe, batch), answer(apply(short, plan), batch)) < 1e-5


def gone():
    from secateurs import ModuleMask

    return ModuleMask(torch.tensor(False))


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
