"""Times of layers: what is measured of them, and what is kept."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from test_compress import data

from secateurs import ModuleMask, SparsityPlan, apply, convert, find_sites
from secateurs.errors import MeasurementError
from secateurs.search import latency_table, layer_times
from secateurs.search.latency_table import LatencyTable
from secateurs.search.layer_times import LayerTimes, Measured
from secateurs.search.precisions import Precision, own
from secateurs.search.sizes import Size, full_size


@pytest.fixture
def bert():
    return tiny_model("bert").eval()


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
    return ModuleMask(torch.tensor(False))
