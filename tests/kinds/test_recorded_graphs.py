"""Graphs of a GPU that a stand-in plays: recorded, replayed and timed where they are for."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from secateurs.conversion import cost
from secateurs.errors import BackendError, DataError
from secateurs.integrations.cuda_graphs import _Graph, capture
from secateurs.measurement.graph_recording import WARM_UP, Recording


class Machine:
    """Stands for torch.cuda on a machine with two GPUs: what is done there, and on which."""

    def __init__(self, monkeypatch, cannot_record: bool = False) -> None:
        self.current, self.recording, self.cannot_record = 0, False, cannot_record
        self.done: list[tuple[str, int]] = []
        self.default_stream = SimpleNamespace(device=0)  # torch's own for recording
        for name in ("device", "Stream", "stream", "current_stream", "CUDAGraph", "graph", "Event"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.note("wait", device))

    def note(self, what: str, device: object = None) -> None:
        self.done.append((what, self.current if device is None else torch.device(device).index))

    @contextmanager
    def device(self, device):
        before, self.current = self.current, torch.device(device).index
        try:
            yield
        finally:
            self.current = before

    def Stream(self, device=None):
        index = self.current if device is None else torch.device(device).index
        return SimpleNamespace(device=index, wait_stream=lambda other: None)

    def current_stream(self, device=None):
        return self.Stream(device)

    @contextmanager
    def stream(self, stream):  # as torch: it makes the stream's GPU the current one
        before, self.current = self.current, stream.device
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, stream=None):
        with self.stream(stream or self.default_stream):
            self.recording = True
            try:
                yield
            finally:
                self.recording = False
            if self.cannot_record:
                raise RuntimeError("operation not permitted when stream is capturing")

    def CUDAGraph(self):
        self.note("graph")
        return SimpleNamespace(replay=lambda: self.note("replay"))

    def Event(self, enable_timing):
        def elapsed_time(stop):
            return 40.0

        record = lambda: self.note("event")  # noqa: E731
        return SimpleNamespace(record=record, synchronize=lambda: None, elapsed_time=elapsed_time)

    def call(self, name: str = "call"):
        def call(*_, **__):
            self.note(f"record {name}" if self.recording else name)
            return "outputs"

        return call


CPU, SECOND = torch.device("cpu"), torch.device("cuda", 1)


def test_a_graph_is_recorded_and_replayed_on_the_gpu_it_is_for(monkeypatch):
    machine = Machine(monkeypatch)
    recording = Recording(machine.call(), SECOND)
    assert recording.replay() == "outputs"
    assert machine.done == [
        *[("call", 1)] * WARM_UP,
        ("graph", 1),
        ("record call", 1),
        ("replay", 1),
    ]
    assert machine.current == 0


def model_on(*devices: str) -> torch.nn.Module:
    model = torch.nn.Module()
    model.parameters = lambda: [SimpleNamespace(device=torch.device(d)) for d in devices]
    return model


def test_a_captured_run_is_recorded_on_the_device_it_is_given(monkeypatch):
    recorded = []

    class Recorded:
        def __init__(self, call, device):
            recorded.append(device)
            self.replay = call

    monkeypatch.setattr(sys.modules["secateurs.integrations.cuda_graphs"], "Recording", Recorded)
    x = torch.ones(1, 3)
    run = _Graph(lambda x: 2 * x, {"x": x}, CPU)
    assert torch.equal(run({"x": 3 * x}), 6 * x)  # the inputs are copied to where they are read
    assert recorded == [CPU]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cpu"], "expected a model on a GPU .* got cpu"),
        (["cuda:0", "cuda:1"], "got cuda:0 and cuda:1"),
        ([], "got no tensors"),
    ],
    ids=["cpu", "two", "none"],
)
def test_a_model_elsewhere_is_not_captured(devices, expected):
    with pytest.raises(BackendError, match=expected):
        capture(model_on(*devices), {"input_ids": torch.ones(1, 3)})


def test_inputs_elsewhere_than_the_model_are_refused():
    model = model_on("cuda:1")
    model.config = SimpleNamespace(pad_token_id=0)
    with pytest.raises(DataError, match="expected input_ids on cuda:1, like the model, got cpu"):
        capture(model, {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_costs_on_a_gpu_are_those_of_replays(monkeypatch):
    """Both forms in turns; of 40 ms for a graph, a call of which it holds many has its share."""
    machine = Machine(monkeypatch)
    samplers = cost._samplers([machine.call("a"), machine.call("b")], SECOND)
    assert [sample() for sample in samplers] == [40.0 / cost.REPEATS] * 2
    for name in ("a", "b"):
        assert machine.done.count((f"record {name}", 1)) == cost.REPEATS
    assert machine.done[-6:] == [("event", 1), ("replay", 1), ("event", 1)] * 2


def test_what_cannot_be_recorded_is_timed_by_the_clock_as_are_those_beside_it(monkeypatch):
    machine = Machine(monkeypatch, cannot_record=True)
    samplers = cost._samplers([machine.call("a"), machine.call("b")], SECOND)
    assert ("wait", 1) in machine.done  # before anything else is asked of that GPU
    machine.done.clear()
    assert all(sample() > 0 for sample in samplers)
    assert machine.done == [("wait", 1), ("a", 0), ("wait", 1), ("wait", 1), ("b", 0), ("wait", 1)]
