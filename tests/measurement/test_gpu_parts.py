"""The parts of `benchmarks/gpu.py` call the package as it is: small problems on the CPU, by the
reference, with a stand-in for what measures."""

from __future__ import annotations

import json
import time

import pytest
import torch
from support.benchmark_modules import benchmark_module

from secateurs import ops
from secateurs.errors import BackendError

attention, bench, counters, linears, measure, patterns = (
    benchmark_module(f"on_gpu.{name}")
    for name in ("attention", "bench", "counters", "linears", "measure", "patterns")
)


class Stand:
    """In the place of a Bench: it checks our calls and runs F.linear beside them, unmeasured."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def in_time(self) -> None: ...

    def rows(self, ours, peers, check, **facts):
        assert check(ours[0]()) < 0.02
        assert all(len(calls) == len(ours) for calls in peers.values())
        for name in {"F.linear", "torch"} & peers.keys():
            peers[name][0]()
        yield {**facts, "peers": sorted(peers)}


@pytest.fixture
def on_cpu(monkeypatch):
    """Small problems on the CPU."""
    for module in (attention, bench, counters, linears, patterns):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
    for module in (linears, patterns):
        monkeypatch.setattr(module, "SHAPES", {"tiny": (256, 128)})
        monkeypatch.setattr(module, "copies_of", lambda _: 2)
    monkeypatch.setattr(attention, "copies_of", lambda _: 2)
    with ops.use_backend("reference"), torch.inference_mode():
        yield


@pytest.mark.parametrize("block", [(64, 64), (128, 32)])
def test_linears_call_the_package_as_it_is(on_cpu, monkeypatch, block):
    problems = (
        linears.Problem("tiny", 32, block, 0.5),
        linears.Problem("tiny", 1, block, 1.0, torch.float32),
    )
    monkeypatch.setattr(linears, "LARGE", problems)
    rows = list(linears.large(Stand("cuda")))
    assert [row["peers"] for row in rows] == [["F.linear"], ["F.linear"]]
    assert [row["density"] for row in rows] == [0.5, 1.0]


def test_triton_takes_tiles_of_256_rows_by_descriptors(on_cpu, monkeypatch):
    pytest.importorskip("triton")
    x = torch.randn(4096, 256, dtype=torch.bfloat16)

    def found(block, capability, x=x):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        return dict(linears.ways("triton", x, linears.block_sparse(128, 256, block, 0.5)[1]))

    hopper = found((128, 32), (9, 0))
    assert list(hopper) == ["addresses", "descriptors", "descriptors, 256 rows"]
    assert (hopper["descriptors, 256 rows"].block_m, hopper["descriptors, 256 rows"].step) == (
        256,
        32,
    )
    assert list(found((128, 32), (8, 0))) == ["addresses"]
    assert list(found((64, 64), (9, 0))) == ["addresses", "descriptors"]
    assert list(found((128, 32), (9, 0), x[:1])) == ["addresses", "descriptors"]


def test_attention_calls_the_package_as_it_is(on_cpu, monkeypatch):
    monkeypatch.setattr(attention, "TOKENS", 128)
    monkeypatch.setattr(attention, "LENGTHS", (128,))
    problems = (
        *(attention.encoder(128, rule) for rule in (attention.DENSE, *attention.ENCODER)),
        attention.decoder(128, 128, 1, attention.DECODER[0]),
        attention.decoder(1, 128, 2, attention.DECODER[0]),
    )
    monkeypatch.setattr(attention, "PLAIN", problems)
    rows = list(attention.plain(Stand("cuda")))
    assert len(rows) == len(problems) + 1
    assert rows[1]["peers"] == ["ours, 12 heads"]
    assert rows[1]["shape"][1] == 6
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(attention, "FLEX", problems[1:2])
    assert [row["peers"] for row in attention.flex(Stand("cuda"))] == [["FlexAttention, same mask"]]


def test_patterns_and_norms_call_the_package_as_it_is(on_cpu, monkeypatch):
    monkeypatch.setattr(patterns, "ROWS", (8,))
    monkeypatch.setattr(patterns, "semi_structured", lambda weights: [])
    assert [row["pattern"] for row in patterns.patterns(Stand("cuda"))] == [
        "2:4",
        "vector 64",
        "library 4x4",
    ]
    monkeypatch.setattr(patterns, "NORMS", {"tiny": (64, False), "tiny rms": (64, True)})
    assert len(list(patterns.norms(Stand("cuda")))) == 6


def test_counters_call_the_package_as_it_is(on_cpu, monkeypatch):
    shapes = {counters.LAYER: (256, 128), "llama-3-8b up": (128, 256)}
    monkeypatch.setattr(counters, "SHAPES", shapes)
    monkeypatch.setattr(counters, "MANY", 32)
    assert [call().shape[-1] for call in counters.calls().values()] == [128, 128, 256, 128, 64, 128]


def bench_until(deadline: float) -> bench.Bench:
    made = object.__new__(bench.Bench)
    made.backend, made.deadline, made.failed, made.facts = "cuda", deadline, False, {}
    return made


@pytest.mark.parametrize(
    ("error", "failed"),
    [(RuntimeError("illegal access"), True), (BackendError("it has no such kernel"), False)],
)
def test_a_call_of_ours_that_cannot_run_is_told(capsys, error, failed):
    def fails():
        raise error

    made = bench_until(time.monotonic() + 60)
    assert list(made.rows([fails], {}, lambda _: 0.0, shape=(1, 2))) == []
    assert made.failed is failed
    assert str(error) in capsys.readouterr().err


def test_no_row_starts_after_the_deadline():
    with pytest.raises(bench.OutOfTime):
        next(bench_until(time.monotonic() - 1).rows([lambda: 0], {}, lambda _: 0.0, shape=()))


@pytest.mark.parametrize(("right", "status"), [(True, 0), (False, 1)])
def test_a_part_writes_its_rows_and_fails_when_one_is_wrong(monkeypatch, tmp_path, right, status):
    found = {"op": "attention", "shape": [1], "density": None, "ms": 1.0, "speedup": 2.0}
    found |= {"baseline": "SDPA", "commit": "of the checkout", "ok": right}

    def late(made):
        yield found
        made.in_time()

    monkeypatch.setattr(measure, "Bench", lambda _, deadline: bench_until(deadline))
    monkeypatch.setattr(attention, "plain", late)
    rows = tmp_path / "gpu.jsonl"
    command = ["measure", "--backend", "cuda", "--part", "attention.plain", "--json", str(rows)]
    monkeypatch.setattr(measure.sys, "argv", [*command, "--commit", "abc", "--until", "1"])
    assert measure.main() == status
    assert [json.loads(line) for line in rows.read_text().splitlines()] == [
        {**found, "commit": "abc"}
    ]
