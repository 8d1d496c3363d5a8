"""What calibration data decide in convert(..., precision="int8", batches=...): each decision lowers
the error it is for, moves nothing else, is told, and comes back from disk."""

from __future__ import annotations

import json

import pytest
import torch
from support.models import answer, relative, saved_files
from support.plans import PLANS
from support.tiny_models import tiny_model
from torch.nn import functional as F

from secateurs import Levels, SparsityPlan, apply, convert, explain, find_sites, load, save
from secateurs.conversion import rounding
from secateurs.conversion.error_feedback import rounded_together
from secateurs.conversion.modules import Int8Linear
from secateurs.conversion.smoothing import factors_of
from secateurs.errors import ArgumentError, CheckpointError, DataError, PlanError
from secateurs.formats.int8_block_sparse import codes, row_scales


def data(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(90, (4, 12), generator=generator)} for _ in range(count)]


def rows(model):
    return {report.site: report for report in explain(model)}


def test_error_feedback_leaves_less_error_than_the_nearest_codes():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 160, generator=generator)  # inputs that go together
    x = torch.randn(600, 40, generator=generator) @ mixed
    weight = torch.randn(24, 160, generator=generator)
    scales = row_scales(weight) * 8  # as if of four bits, to tell them apart
    stays = torch.rand(24, 160, generator=generator) < 0.7
    weight = weight * stays
    nearest = (weight / scales[:, None]).round().clamp(-127, 127) * scales[:, None]
    found = rounded_together(weight, scales, x, stays)
    whole = found / scales[:, None]
    assert torch.allclose(whole, whole.round(), atol=1e-4)
    assert float(whole.abs().max()) <= 127.001
    assert not bool(found[~stays].any())

    def error(rounded):
        return float((x.double() @ (rounded - weight).double().T).norm())

    assert error(found) < 0.6 * error(nearest)


def test_error_feedback_without_inputs_is_the_nearest_codes():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    scales = row_scales(weight)
    want = codes(weight, scales) * scales[:, None]
    assert torch.equal(rounded_together(weight, scales, torch.zeros(9, 7)), want)


def test_factors_are_powers_of_two_that_even_out_the_inputs():
    x = torch.tensor([[64.0, 1.0, 0.0, -2.0], [-8.0, 0.5, 0.0, 2.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    factor = factors_of(x, weight, 0.5, torch.arange(4), 4)
    # Roots 8, 1 and sqrt 2; the mean of their logarithms is 3.5 / 3.
    assert factor.tolist() == [4.0, 0.5, 1.0, 0.5]
    shared = factors_of(x, weight, 1.0, torch.tensor([0, 1, 1, 0]), 2)
    assert shared.tolist() == [8.0, 0.125]


def outliers(family):
    """A model some of whose units write far more than others."""
    model = tiny_model(family)
    sites = find_sites(model)
    with torch.no_grad():
        for i in range(len(sites.layers)):
            sites.linear(model, i, "value").weight[::9].mul_(10)
            sites.linear(model, i, "output").weight[:, :: 9 * len(sites.layers)].mul_(0.1)
            if sites.layers[i].gated:
                sites.linear(model, i, "up").weight[::7].mul_(10)
            for path in sites.architecture.norms:
                norm = sites.layer(model, i).get_submodule(path)
                if sites.architecture.norm_first and norm.weight is not None:
                    norm.weight[::11].mul_(10)
    return model


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("name", ["empty", "uneven"])
def test_moved_factors_change_nothing_but_the_rounding(family, name, monkeypatch, batch):
    model, plan = outliers(family), SparsityPlan(PLANS[name] if family == "bert" else {})
    kept = []
    decide = rounding.decide
    monkeypatch.setattr(
        "secateurs.conversion.builder.decide", lambda *a: kept.extend(decide(*a)) or kept
    )
    fast = convert(model, plan, precision="int8", batches=data(), max_error=1e-9)
    moved = {note for layer in kept for notes in layer.notes.values() for note in notes}
    expected = {"bert": {"value"}, "llama": {"value", "up", "the norm in front"}}
    assert expected.get(family, {"the norm in front"}) <= {
        note.removeprefix("factors moved here from ") for note in moved
    }
    # Every linear is past that bound, but for those of one input: what is left are the factors.
    assert {m.shape[1] for m in fast.modules() if isinstance(m, Int8Linear)} <= {1}
    inputs = data(1, seed=5)[0]
    assert relative(answer(fast, inputs), answer(apply(model, plan), inputs)) < 1e-5


def test_data_lower_the_error():
    model, unseen = outliers("bert"), data(3, seed=9)
    plain, fitted = (
        convert(model, SparsityPlan(), precision="int8", batches=batches, max_error=1.0)
        for batches in (None, data())
    )

    def error(fast):
        return sum(relative(answer(fast, batch), answer(model, batch)) for batch in unseen)

    assert error(fitted) < 0.8 * error(plain)


def test_each_decision_lowers_the_error_of_its_linear_on_other_tokens():
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    model, plan = tiny_model("bert"), SparsityPlan()
    sites = find_sites(model)
    linear = rounding.CompactLinear(
        sites.linear(model, 0, "up").weight.detach(), sites.linear(model, 0, "up").bias.detach()
    )
    layer = rounding.Layer(sites.layer(model, 0), {"up": linear}, {"up": x}, sites.keep(plan, 0))
    rounding.choose_codes(layer, 1.0)
    made, judge = layer.linears["up"], x[::4]
    want = F.linear(judge, linear.weight, linear.bias)

    def error(weight, bias):
        return float((F.linear(rounding.rounded_inputs(judge), weight, bias) - want).norm())

    scales = row_scales(linear.weight)
    nearest = codes(linear.weight, scales) * scales[:, None]
    assert error(made.weight, made.bias) < error(made.weight, linear.bias)
    assert error(made.weight, linear.bias) < error(nearest, linear.bias)
    (note,) = layer.notes["up"]
    told = error(made.weight, made.bias) / float((judge @ linear.weight.T).norm())
    assert note == f"error {told:.4f} on calibration data, codes by error feedback, bias fitted"


def test_a_linear_past_the_bound_stays_and_comes_back_from_disk(tmp_path, batch):
    model = tiny_model("bert")
    with torch.no_grad():  # one channel of the states drowns the others of its group
        model.encoder.layer[0].attention.output.LayerNorm.bias[3] += 400
        model.encoder.layer[0].intermediate.dense.weight[:, 3] = 0
    fast = convert(model, SparsityPlan(), precision="int8", batches=data(), max_error=0.1)
    told = rows(fast)
    stays = {site for site, row in told.items() if "not in int8" in row.reason}
    assert stays == {"layers.0.up"}
    assert told["layers.0.up"].action == "dense panels"
    assert "on calibration data in int8, more than 0.1" in told["layers.0.up"].reason
    assert told["layers.0.layer"].action == "one operation"
    exact = model.encoder.layer[0].intermediate.dense.weight
    assert torch.equal(fast.encoder.layer[0].ffn.up.dense(), exact)
    save(fast, tmp_path)
    again = load(tmp_path)
    assert torch.equal(answer(again, batch), answer(fast, batch))
    assert rows(again)["layers.0.up"].reason.startswith("not in int8: as it was converted")
    assert {r.action for r in explain(again)} == {r.action for r in explain(fast)[1:]}
    low = fast.to(torch.bfloat16)
    assert not isinstance(low.encoder.layer[0].ffn.up, Int8Linear)
    assert isinstance(low.encoder.layer[1].ffn.up, Int8Linear)


def test_query_key_and_value_stay_together():
    model = tiny_model("bert")
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[3] += 400
        model.encoder.layer[0].attention.self.key.weight[:, 3] = 0
    fast = convert(model, SparsityPlan(), precision="int8", batches=data(), max_error=0.1)
    qkv = fast.encoder.layer[0].attention.qkv
    assert not isinstance(qkv, Int8Linear)
    exact = [model.encoder.layer[0].attention.self.get_submodule(n) for n in ("query", "key")]
    assert torch.equal(qkv.dense()[:128], torch.cat([linear.weight for linear in exact]))


class Clock:
    """Costs by which forms whose names hold a word take longer."""

    def __init__(self, slow):
        self.slow = slow

    def times(self, name, forms, x, residual):
        return {form: 2.0 if self.slow in form else 1.0 for form in forms}


@pytest.mark.parametrize("slow", ["int8", "torch"])
def test_a_linear_that_is_slower_in_codes_stays(slow, monkeypatch, tmp_path, batch):
    monkeypatch.setattr("secateurs.conversion.cost.MEASURED_FROM", 96 * 64)
    model = tiny_model("bert")
    wide = next(n for n, (rows, k) in find_sites(model).layers[0].linears().items() if n == "up")
    fast = convert(model, SparsityPlan(), precision="int8", batches=data(), costs=Clock(slow))
    row = rows(fast)[f"layers.0.{wide}"]
    stays = slow == "int8"
    assert isinstance(fast.encoder.layer[0].ffn.up, Int8Linear) != stays
    assert ("not in int8: int8 panels 2.000 ms" in row.reason) == stays
    if stays:  # with its own weight, not the rounded one
        weight = model.encoder.layer[0].intermediate.dense.weight
        assert torch.equal(fast.encoder.layer[0].ffn.up.dense(), weight)
        save(fast, tmp_path)
        assert torch.equal(answer(load(tmp_path), batch), answer(fast, batch))


def test_the_same_data_give_the_same_model_and_leave_the_given_one(batch):
    model = outliers("llama")
    before = {name: held.clone() for name, held in model.state_dict().items()}
    first, second = (
        convert(model, SparsityPlan(), precision="int8", batches=data()) for _ in range(2)
    )
    inputs = data(1)[0]
    assert torch.equal(answer(first, inputs), answer(second, inputs))
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_refusal_in_the_middle_leaves_the_model(inplace, monkeypatch, batch):
    model, inputs = outliers("llama"), data(1)[0]
    want = answer(model, inputs)
    calls = []

    def fail(*args):
        calls.append(args)
        if len(calls) == 2:
            raise DataError("stop")
        return prove(*args)

    from secateurs.conversion.builder import prove

    monkeypatch.setattr("secateurs.conversion.builder.prove", fail)
    with pytest.raises(DataError, match="stop"):
        convert(model, SparsityPlan(), precision="int8", batches=data(), inplace=inplace)
    assert torch.equal(answer(model, inputs), want)


def test_levels_of_a_plan_stay_as_they_are_beside_data():
    model = outliers("bert")
    weight = find_sites(model).linear(model, 0, "output").weight
    plan = SparsityPlan({}, levels={"layers.0.output": Levels.fit(weight, 4)})
    fast = convert(model, plan, precision="int8", batches=data(), max_error=10.0)
    output = fast.encoder.layer[0].attention.output
    assert torch.equal(output.dense(), plan.levels["layers.0.output"].nearest(weight))


@pytest.mark.parametrize("name", list(PLANS))
def test_every_plan_is_rounded_by_data(name, tmp_path, batch):
    model, plan = tiny_model("bert"), SparsityPlan(PLANS[name])
    fast = convert(model, plan, precision="int8", batches=data(2))
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < 0.03
    save(fast, tmp_path)
    assert torch.equal(answer(load(tmp_path), batch), answer(fast, batch))


def test_one_token_of_data_changes_nothing(batch):
    model = tiny_model("bert")
    fast = convert(
        model, SparsityPlan(), precision="int8", batches=[{"input_ids": torch.tensor([[7]])}]
    )
    plain = convert(model, SparsityPlan(), precision="int8")
    assert torch.equal(answer(fast, batch), answer(plain, batch))


def test_padding_decides_nothing():
    model, fast = outliers("bert"), []
    padded = [
        {
            "input_ids": F.pad(b["input_ids"], (0, 5), value=value),
            "attention_mask": F.pad(torch.ones_like(b["input_ids"]), (0, 5)),
        }
        for value in (1, 80)
        for b in data()
    ]
    for batches in (padded[:6], padded[6:]):
        fast.append(convert(model, SparsityPlan(), precision="int8", batches=batches))
    for one, other in zip(*(m.encoder.layer for m in fast), strict=True):
        assert torch.equal(one.ffn.down.values, other.ffn.down.values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(bad):
    model = tiny_model("bert")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] = bad
    batches = [*data(2), {"input_ids": torch.tensor([[5, 6]])}]
    with pytest.raises(DataError, match=r"NaN or infinity in front of encoder\.layer\.0\."):
        convert(model, SparsityPlan(), precision="int8", batches=batches)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": []}, DataError, "at least one batch"),
        ({"batches": [{"input_ids": "text"}]}, DataError, "dicts of tensors"),
        ({"batches": data(1), "precision": None}, PlanError, "batches alone"),
        ({"batches": data(1), "alpha": 1.5}, PlanError, "alpha from 0 to 1"),
        ({"batches": data(1), "max_error": 0.0}, PlanError, "max_error above 0"),
        ({"batches": data(1), "max_error": float("nan")}, ArgumentError, "a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        convert(tiny_model("bert"), SparsityPlan(), **{"precision": "int8", **options})


def test_a_file_that_names_other_linears_as_not_rounded_is_refused(tmp_path):
    save(convert(tiny_model("bert"), SparsityPlan(), precision="int8"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names, message in (
        (["layers.9.up"], "names of linears as unrounded, got layers.9.up"),
        (["layers.0.up"], "expected encoder.layer.0.intermediate.dense.weight as"),
        ("layers.0.up", "a list of names"),
    ):
        config["secateurs"]["unrounded"] = names
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)
    assert saved_files(tmp_path)
