from __future__ import annotations

import json
import math
import time
from functools import partial

import pytest
import torch
from torch import nn

from secateurs.errors import DataError
from secateurs.measurement.rows import append_rows, row
from secateurs.measurement.timing import (
    alternate,
    max_relative_difference,
    measure,
    relative_error,
)

ROW_KEYS = {
    "backend", "isa", "dtype", "shape", "block", "density", "ms", "ms_p20", "ms_p80", "baseline",
    "baseline_ms", "speedup", "rel_err", "ok", "torch", "threads", "device", "commit",
}  # fmt: skip
QUICK = {"warmup": 0, "min_repeats": 3, "min_time": 0.0}


class FakeClock:
    """A clock that only moves when told to, so that what is asserted about time is arithmetic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def task(self, milliseconds: float, log: list[str] | None = None, name: str = ""):
        def run(x: torch.Tensor) -> torch.Tensor:
            self.now += milliseconds / 1e3
            if log is not None:
                log.append(name)
            return x

        return run


def test_median_speedup_and_spread_are_those_of_the_clock(monkeypatch):
    clock = FakeClock(monkeypatch)
    result = measure(clock.task(2), torch.ones(1), clock.task(6), **QUICK)
    assert result.timing.ms == pytest.approx(2)
    assert result.baseline.ms == pytest.approx(6)
    assert result.speedup == pytest.approx(3)
    assert result.speedup_p20 == pytest.approx(3)
    assert result.speedup_p80 == pytest.approx(3)
    assert "speedup 3.00x" in str(result)


def test_quantiles_interpolate_between_ranks(monkeypatch):
    clock = FakeClock(monkeypatch)
    durations = iter([5.0] + [float(i) for i in range(1, 12)])

    def slower_every_time(x: torch.Tensor) -> torch.Tensor:
        clock.now += next(durations) / 1e3
        return x

    options = {"warmup": 0, "min_repeats": 11, "min_time": 0.0}
    timing = measure(slower_every_time, torch.ones(1), **options).timing
    assert (timing.ms_p20, timing.ms, timing.ms_p80) == pytest.approx((3, 6, 9))
    assert timing.repeats == 11


def test_samples_alternate_and_swap_order(monkeypatch):
    log: list[str] = []
    clock = FakeClock(monkeypatch)
    measure(
        clock.task(2, log, "a"), torch.ones(1), clock.task(2, log, "b"),
        warmup=1, min_repeats=4, min_time=0.0, compare=False,
    )  # fmt: skip
    warmup_and_sizing = "abab"
    assert "".join(log) == warmup_and_sizing + "abbaabba"


def test_of_more_than_two_no_sample_follows_the_same_one_each_time():
    log: list[str] = []
    calls = [partial(log.append, name) for name in "abcd"]
    alternate([lambda call=call: call() or 1.0 for call in calls], min_repeats=12, min_time=0.0)
    rounds = ["".join(log[start : start + 4]) for start in range(0, len(log), 4)]
    assert {"".join(sorted(one)) for one in rounds} == {"abcd"}
    before_b = {log[place - 1] for place in range(1, len(log)) if log[place] == "b"}
    assert {"a", "c", "d"} <= before_b


def test_short_calls_are_grouped_into_samples(monkeypatch):
    log: list[str] = []
    clock = FakeClock(monkeypatch)
    options = {"warmup": 0, "min_repeats": 2, "min_time": 0.0, "min_sample": 1e-3}
    result = measure(clock.task(0.1, log, "a"), torch.ones(1), **options)
    assert len(log) in range(1 + 2 * 10, 1 + 2 * 11 + 1)  # rounding may add a call to each sample
    assert result.timing.ms == pytest.approx(0.1)


def test_sampling_lasts_at_least_the_time_asked_for(monkeypatch):
    clock = FakeClock(monkeypatch)
    result = measure(clock.task(10), torch.ones(1), warmup=0, min_repeats=1, min_time=0.5)
    assert result.timing.repeats in (50, 51)


def test_settling_rests_and_makes_an_untimed_call_before_each_sample(monkeypatch):
    log: list[str] = []
    clock = FakeClock(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: log.append(f"rest {seconds}"))
    options = {"warmup": 0, "min_repeats": 2, "min_time": 0.0, "settle": 0.5}
    result = measure(clock.task(2, log, "call"), torch.ones(1), **options)
    sizing = ["call"]
    assert log == sizing + ["rest 0.5", "call", "call"] * 2
    assert result.timing.ms == pytest.approx(2)


def test_modules_take_mappings_tuples_and_tensors():
    model = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    for inputs in ({"input": x}, (x,), x):
        result = measure(model, inputs, model, **QUICK)
        assert result.rel_err == 0.0
        assert result.timing.ms > 0


def test_runs_in_inference_mode_and_leaves_the_training_mode_alone():
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_inference_mode_enabled(), self.training))
            return x

    measure(Spy().train(), torch.ones(1), **QUICK)
    assert set(seen) == {(True, True)}


def test_peak_memory_sees_what_a_call_allocates():
    def allocate(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(16 << 20).sum()

    peak = measure(allocate, torch.ones(1), memory=True, **QUICK).timing.peak_bytes
    if peak is None:
        pytest.skip("this platform does not tell a process its peak resident set")
    assert 60 << 20 < peak < 80 << 20


def test_inputs_without_a_tensor_are_refused():
    with pytest.raises(DataError, match="at least one tensor"):
        measure(lambda n: n, (3,))


def test_zero_repeats_are_refused():
    with pytest.raises(DataError, match="min_repeats >= 1"):
        measure(nn.Identity(), torch.ones(1), min_repeats=0)


def test_relative_error_is_the_relative_rms():
    want = torch.tensor([3.0, 4.0])
    assert relative_error(want + torch.tensor([0.3, 0.4]), want) == pytest.approx(0.1, rel=1e-6)


def test_relative_error_takes_the_worst_of_nested_outputs():
    want = {"a": torch.ones(4), "b": (torch.ones(2), torch.tensor([1, 2]))}
    got = {"a": torch.ones(4) * 1.5, "b": (torch.ones(2) * 0.9, torch.tensor([7, 7]))}
    assert relative_error(got, want) == pytest.approx(0.5)


def test_max_relative_difference_finds_a_single_wrong_element():
    want = torch.ones(1000)
    got = want.clone()
    got[3] = 1.5
    assert max_relative_difference(got, want) == pytest.approx(0.5)
    assert relative_error(got, want) < 0.02


@pytest.mark.parametrize("distance", [relative_error, max_relative_difference])
def test_nan_on_one_side_is_nan_and_infinity_is_infinite(distance):
    one, nan, inf = torch.ones(2), torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf])
    assert math.isnan(distance(nan, one))
    assert math.isnan(distance((one, nan), (one, one)))
    assert math.isnan(distance((nan, one), (one, one)))
    assert math.isnan(distance(one, nan))
    assert distance(inf, one) == math.inf
    assert distance(nan, nan) == 0.0
    assert distance(inf, inf) == 0.0


def test_outputs_of_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"shapes \[\(2,\)\], got \[\(3,\)\]"):
        relative_error(torch.ones(3), torch.ones(2))
    with pytest.raises(DataError, match="expected outputs"):
        relative_error("text", "text")


def test_a_row_has_every_column_and_survives_json(tmp_path):
    x = torch.randn(2, 4)
    result = measure(nn.Identity(), x, lambda x: x * (1 + 1e-3), **QUICK)
    record = row(
        result, op="identity", backend="cpu", isa="avx2", dtype=x.dtype, shape=x.shape,
        block=(32, 16), density=0.5, baseline="copy", tolerance=1e-2,
    )  # fmt: skip
    assert set(record) == ROW_KEYS | {"op"}
    assert record["ok"] is True
    assert record["dtype"] == "float32"
    path = tmp_path / "folder" / "rows.json"
    append_rows(path, [record])
    append_rows(path, [record])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record, record]


def test_a_wrong_output_makes_the_row_not_ok():
    x = torch.ones(4)
    wrong = measure(nn.Identity(), x, lambda x: x * 2, **QUICK)
    broken = measure(lambda x: x * math.nan, x, nn.Identity(), **QUICK)
    labels = {"op": "o", "backend": "cpu", "dtype": "float32", "shape": (4,), "tolerance": 1e-3}
    assert row(wrong, **labels)["ok"] is False
    assert row(broken, **labels)["ok"] is False
    assert row(broken, **labels)["rel_err"] is None
    assert row(wrong, **labels, rel_err=1e-9)["ok"] is True


def test_a_row_names_an_op_or_a_model_but_not_both():
    result = measure(nn.Identity(), torch.ones(1), **QUICK)
    labels = {"backend": "cpu", "dtype": "float32", "shape": (1,)}
    with pytest.raises(DataError, match="of an op or of a model"):
        row(result, **labels)
    with pytest.raises(DataError, match="of an op or of a model"):
        row(result, op="a", model="b", **labels)
