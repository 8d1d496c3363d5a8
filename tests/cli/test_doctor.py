from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch
from cli.conftest import run

from secateurs.cli import machine_check
from secateurs.cli.machine_check import FINE, NOTE, PROBLEM, Rate


def levels(found):
    return {finding.subject: finding.level for finding in found}


def rate(name, ms, spread=0.0):
    return Rate(name, ms, 1.0, spread)


def flat(spread=0.0, **ms):
    names = ("torch fp32", "torch bf16", *(f"{p} {q}" for p in ("dense", "half") for q in ms))
    return [rate(name, ms.get(name.split()[1], 1.0), spread) for name in names]


def test_doctor_times_every_precision_and_says_what_it_found(tmp_path, capsys):
    told = tmp_path / "told.json"
    assert run("doctor", "--min-time", "0", "--json", told) in (0, 1)
    told = json.loads(told.read_text())
    assert {r["name"] for r in told["rates"]} >= {"dense fp32", "half int8", "torch bf16"}
    assert all(r["ms"] > 0 and r["gops"] > 0 for r in told["rates"])
    half, dense = (
        next(r for r in told["rates"] if r["name"] == f"{p} fp32") for p in ("half", "dense")
    )
    assert half["gops"] * half["ms"] == pytest.approx(dense["gops"] * dense["ms"] / 2)
    assert {"kernels", "threads", "noise", "cache"} <= {f["subject"] for f in told["findings"]}
    assert told["findings"][0]["sentence"] in capsys.readouterr().out


def test_without_kernels_it_fails_and_says_why(monkeypatch, capsys):
    monkeypatch.setattr(
        machine_check.ops, "build_info", lambda: {"cpu": {"missing": "no compiler"}, "cuda": {}}
    )
    assert run("doctor", "--min-time", "0") == 1
    assert "no compiler" in capsys.readouterr().out


def test_precisions_that_gain_nothing_are_noted():
    gains = machine_check.findings(flat(fp32=2.0, bf16=1.0, int8=1.95))
    dense = [f.level for f in gains if "dense linear" in f.sentence]
    assert dense == [FINE, NOTE]
    assert [f.level for f in gains if "blocks removed" in f.sentence] == [NOTE] * 3


@pytest.mark.parametrize(("spread", "level"), [(0.1, FINE), (0.4, NOTE)])
def test_noise_is_told(spread, level):
    found = machine_check.findings(flat(spread, fp32=1.0, bf16=1.0, int8=1.0))
    assert levels(found)["noise"] == level


@pytest.mark.parametrize(("usable", "level"), [(1, PROBLEM), (2, FINE), (4, NOTE)])
def test_more_threads_than_cores_is_a_problem(monkeypatch, usable, level):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(machine_check, "usable_cores", lambda: usable)
    found = machine_check.findings(flat(fp32=1.0, bf16=1.0, int8=1.0))
    assert levels(found)["threads"] == level


@pytest.mark.parametrize(
    ("version", "level"), [("2.13.1+cpu", FINE), ("2.12.0", PROBLEM), (None, PROBLEM)]
)
def test_a_package_outside_its_bounds_is_a_problem(monkeypatch, version, level):
    stated = ["torch<2.15,>=2.13", "torchvision; extra == 'x'", "numpy"]
    monkeypatch.setattr(metadata, "requires", lambda _: stated)
    monkeypatch.setattr(machine_check, "package_version", lambda _: version)
    found = machine_check.findings(flat(fp32=1.0, bf16=1.0, int8=1.0))
    assert levels(found)["torch"] == level
    assert "torchvision" not in levels(found)


def test_a_cache_that_cannot_be_written_is_noted(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path / "file" / "cache"))
    found = machine_check.findings(flat(fp32=1.0, bf16=1.0, int8=1.0))
    assert levels(found)["cache"] == NOTE
