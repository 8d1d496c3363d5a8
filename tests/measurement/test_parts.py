"""Where the time of a call goes, by a clock that only the modules move."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from secateurs.measurement.parts import PartTime, parts_of, time_parts


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Part(nn.Module):
    def __init__(self, clock, ms):
        super().__init__()
        self.clock, self.ms = clock, ms

    def forward(self, x):
        self.clock.now += self.ms / 1e3
        return x


class Layer(nn.Module):
    def __init__(self, clock, ms):
        super().__init__()
        self.attention = Part(clock, ms)
        self.ffn = nn.ModuleList([Part(clock, 2 * ms)])
        self.unused = Part(clock, 100.0)

    def forward(self, x):
        return self.ffn[0](self.attention(x))


class Encoder(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.layer = nn.ModuleList([Layer(clock, 1.0), Layer(clock, 3.0)])
        self.norm = Part(clock, 0.5)

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)
        return self.norm(x)


class Model(Part):
    """12 ms of layers, 2.5 ms beside them, 4 ms of its own."""

    def __init__(self, clock):
        super().__init__(clock, 4.0)
        self.weight = nn.Parameter(torch.zeros(1))
        self.front, self.encoder = Part(clock, 2.0), Encoder(clock)

    def forward(self, x):
        return super().forward(self.encoder(self.front(x)))

    def named_in_two_places(self):
        self.encoder.tied = self.front
        for layer in self.encoder.layer:
            layer.unused = self.front
        return self


LAYERS = ["encoder.layer.0", "encoder.layer.1"]


def test_each_part_has_the_time_of_its_modules(clock):
    model = Model(clock)
    rows = time_parts(model, {"x": torch.zeros(1)}, LAYERS, min_repeats=2, min_time=0.0)
    found = {row.part: (row.modules, row.ms and pytest.approx(row.ms)) for row in rows}
    assert found == {
        "layers": (2, 12.0),
        "layers: attention": (2, 4.0),
        "layers: ffn.0": (2, 8.0),
        "layers: unused": (2, None),
        "front": (1, 2.0),
        "encoder.norm": (1, 0.5),
        "all else": (0, 4.0),
        "whole": (1, 18.5),
    }
    assert {row.part: row.share for row in rows}["layers"] == pytest.approx(12 / 18.5)
    assert isinstance(rows[0], PartTime)


def test_a_module_in_several_places_is_timed_once(clock):
    model = Model(clock).named_in_two_places()
    rows = time_parts(model, {"x": torch.zeros(1)}, LAYERS, min_repeats=1, min_time=0.0)
    found = {row.part: row.ms and pytest.approx(row.ms) for row in rows}
    assert (found["all else"], found["layers: unused"]) == (4.0, 2.0)
    assert "encoder.tied" not in found


def test_nothing_is_left_on_the_modules(clock):
    model = Model(clock)
    time_parts(model, {"x": torch.zeros(1)}, LAYERS, min_repeats=1, min_time=0.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_module_is_in_one_part_beside_the_parts_of_layers(clock):
    model = Model(clock)
    parts = parts_of(model, LAYERS)
    beside = [m for name, ms in parts.items() if ":" not in name and name != "whole" for m in ms]
    held = [inner for module in beside for inner in module.modules()]
    assert len(held) == len(set(held))
    around = {model, model.encoder, model.encoder.layer}
    assert set(held) == set(model.modules()) - around
