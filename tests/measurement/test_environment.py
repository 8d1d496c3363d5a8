from __future__ import annotations

import json
import platform
from types import SimpleNamespace

import torch

from secateurs.measurement import environment
from secateurs.measurement.environment import device_name, env_report, format_report, git_commit
from secateurs.ops._backends import cuda


def test_the_report_is_json_and_names_what_runs(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")  # its metadata may say 2.14.1
    report = env_report()
    assert json.loads(json.dumps(report)) == report
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"] == "2.14.1+cu130"
    assert report["cpu"]["threads"] == torch.get_num_threads()
    assert report["kernels"]["cpu"]["isa"] in report["kernels"]["cpu"]["isas"]


def test_gpus_are_told_in_plain_json_types(monkeypatch):
    device = {"name": "some GPU", "capability": (9, 0), "multiprocessors": 132, "memory": 1 << 37}
    module = SimpleNamespace(
        build_info=lambda: {"toolkit": "13.0", "archs": "90a-real"},
        runtime_version=lambda: (13, 0),
        driver_version=lambda: (13, 1),
        devices=lambda: [device],
    )
    monkeypatch.setattr(cuda, "_C_cuda", module)
    report = env_report()
    assert json.loads(json.dumps(report)) == report
    told = report["kernels"]["cuda"]
    assert told["devices"] == [{**device, "capability": [9, 0]}]
    assert (told["toolkit"], told["archs"], told["driver"]) == ("13.0", "90a-real", "13.1")


def test_only_our_variables_are_told(monkeypatch):
    monkeypatch.setenv("SECATEURS_TEST_NAME", "yes")
    monkeypatch.setenv("ANOTHER_NAME", "no")
    variables = env_report()["variables"]
    assert variables["SECATEURS_TEST_NAME"] == "yes"
    assert "ANOTHER_NAME" not in variables


def test_a_missing_package_is_none_rather_than_an_error(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package-at-all",))
    assert env_report()["versions"]["no-such-package-at-all"] is None


def test_the_text_holds_every_leaf():
    text = format_report({"a": {"bb": 1, "c": None}, "list": ["x", "y"]})
    assert text.splitlines() == ["a", "  bb  1", "  c   -", "list  x, y"]


def test_the_cpu_has_a_name():
    assert device_name(torch.device("cpu"))


def test_the_commit_is_a_hash_or_unknown():
    commit = git_commit()
    assert commit is None or int(commit.rstrip("+"), 16) >= 0
