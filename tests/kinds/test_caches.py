"""Kind: a file that only saves time stops the work, or is believed when it is not ours.

The tables of costs and of launch configurations are kept in one folder. Whatever lies there, they
end with the right content, and with what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateurs import files
from secateurs.conversion import cost
from secateurs.conversion.cost import CostTable
from secateurs.conversion.modules import DenseLinear
from secateurs.ops._core import gpu, tuning
from secateurs.ops._core.tuning import Config, Table

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TUNED = Config(128, 32, 8, 2)
OURS = Config(64, 32, 4, 3)
TABLE = Table("some_op", {80: {("half", 64): OURS}})
DEEP = "[" * 100_000

# What is no table, whoever wrote it.
NO_TABLES = {
    "empty": "",
    "truncated": '{"times": {"call": {"one": 1.0',
    "a list": "[1, 2]",
    "a number": "7",
    "null": "null",
    "text": '"times"',
    "deep": DEEP,
    "deep in a table": '{"times": ' + DEEP,
    "long number": '{"times": ' + "9" * 10_000 + "}",
    "not UTF-8": b"\xff\xfe{}",
    "zeros": b"\0" * 4096,
}
# What is no time.
NO_TIMES = ["1.0", None, [1.0], {}, True, 0, -1.0, float("nan"), float("inf"), 1e300, 10**400]


def forms() -> dict[str, torch.nn.Module]:
    weight = torch.randn(8, 4)
    return {"one": DenseLinear(weight, None), "two": DenseLinear(weight, None)}


@pytest.fixture
def counted(monkeypatch):
    """Times calls without a clock, and counts how often: the first form takes 2 ms."""
    measured = []

    def samplers(calls, device):
        measured.append(len(calls))
        return [lambda i=i: 2.0 - i for i in range(len(calls))]

    monkeypatch.setattr(cost, "_samplers", samplers)
    return measured


def times(folder: Path | str | None) -> dict[str, float]:
    return CostTable(CPU, folder).times("call", forms(), torch.randn(2, 4), None)


def file_of_costs(folder: Path) -> Path:
    """The file that a table on this machine is kept in."""
    times(folder)
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("case", NO_TABLES)
def test_what_is_no_table_of_costs_is_measured_again(tmp_path, counted, case):
    file, content = file_of_costs(tmp_path), NO_TABLES[case]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert times(tmp_path) == {"one": 2.0, "two": 1.0}
    assert len(counted) == 2
    assert times(tmp_path) == {"one": 2.0, "two": 1.0}  # kept, in place of what was there
    assert len(counted) == 2


@pytest.mark.parametrize("ms", NO_TIMES, ids=[repr(ms)[:8] for ms in NO_TIMES])
def test_what_is_no_time_is_measured_again(tmp_path, counted, ms):
    file = file_of_costs(tmp_path)
    content = json.loads(file.read_text())
    content["times"] = {"call": {"one": ms, "two": 1.0}, "other": ms, "kept": {"one": 3.0}}
    file.write_text(json.dumps(content))
    assert times(tmp_path) == {"one": 2.0, "two": 1.0}
    assert len(counted) == 2
    assert json.loads(file.read_text())["times"]["kept"] == {"one": 3.0}


def test_times_of_another_machine_are_not_believed(tmp_path, counted):
    file = file_of_costs(tmp_path)
    content = json.loads(file.read_text())
    content["machine"] += ", another"
    content["times"]["call"] = {"one": 0.001, "two": 5.0}
    file.write_text(json.dumps(content))
    assert times(tmp_path) == {"one": 2.0, "two": 1.0}


def test_a_forced_backend_has_times_of_its_own(tmp_path, counted):
    from secateurs.ops import use_backend

    times(tmp_path)
    with use_backend("reference"):
        times(tmp_path)
    assert len(counted) == 2


def test_what_two_processes_measure_at_once_is_kept_of_both(tmp_path, counted):
    x = torch.randn(2, 4)
    first, second = CostTable(CPU, tmp_path), CostTable(CPU, tmp_path)
    first.times("a", forms(), x, None)
    second.times("b", forms(), x, None)
    again = CostTable(CPU, tmp_path)
    again.times("a", forms(), x, None)
    again.times("b", forms(), x, None)
    assert len(counted) == 2


WRITER = """
import runpy, sys
from pathlib import Path
module, path, letter = sys.argv[1:]
write = runpy.run_path(module)["write_table"]
for _ in range(200):
    write(Path(path), {"text": letter * 20_000})
"""


def test_a_reader_beside_two_writers_finds_one_of_theirs(tmp_path):
    path = tmp_path / "table.json"
    files.write_table(path, {"text": "a" * 20_000})
    command = [sys.executable, "-c", WRITER, files.__file__, str(path)]
    writers = [subprocess.Popen([*command, letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(files.read_table(path).get("text"))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 20_000, "b" * 20_000}
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_one_variable_says_where_both_tables_are(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEURS_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    monkeypatch.setattr(tuning, "version", lambda _: "3.8.0")
    assert CostTable(CPU)._path.parent == tmp_path / "ours"
    assert tuning._file(GPU) == tmp_path / "ours" / "some-GPU-triton-3.8.0.json"
    monkeypatch.setenv("SECATEURS_CACHE", "")
    assert CostTable(CPU)._path.parent == tmp_path / "all" / "secateurs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "secateurs"


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home directory, as in many containers."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SECATEURS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


def test_without_a_home_nothing_is_kept(homeless, counted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    assert times("default") == {"one": 2.0, "two": 1.0}
    assert times("default") == {"one": 2.0, "two": 1.0}
    assert len(counted) == 2
    assert tuning._file(GPU) is None
    assert tuning._kept(GPU) == {}


@pytest.mark.parametrize("what", ["a file for a folder", "a folder for a file", "a pipe"])
def test_what_cannot_be_read_or_written_is_no_error(tmp_path, counted, what):
    folder = tmp_path
    if what == "a file for a folder":
        folder = tmp_path / "file"
        folder.write_text("")
    else:
        file = file_of_costs(tmp_path)
        file.unlink()
        file.mkdir() if what == "a folder for a file" else os.mkfifo(file)
    before = len(counted)
    assert times(folder) == {"one": 2.0, "two": 1.0}
    assert len(counted) == before + 1


def test_a_write_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    files.write_table(tmp_path / "table.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def gpu_file(monkeypatch, tmp_path):
    file = tmp_path / "cache" / "gpu.json"
    monkeypatch.setattr(gpu, "architecture", lambda _: 80)
    monkeypatch.setattr(tuning, "_file", lambda _: file)
    tuning._tuned.cache_clear()
    yield file
    tuning._tuned.cache_clear()


@pytest.mark.parametrize("case", NO_TABLES)
def test_what_is_no_table_of_configurations_is_not_believed(gpu_file, case):
    content = NO_TABLES[case]
    gpu_file.parent.mkdir()
    gpu_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert TABLE.choose(GPU, ("half", 64)) == OURS


@pytest.mark.parametrize(
    "change",
    [
        {"block_m": "128"},
        {"block_m": 128.0},
        {"block_m": True},
        {"block_m": 96},
        {"step": 0},
        {"warps": -4},
        {"stages": None},
        {"stages": 10**30},
        {"step": float("nan")},
        {"descriptors": 1},
        {"specialised": "no"},
        {"more": 1},
    ],
    ids=repr,
)
def test_what_is_no_configuration_is_not_believed(gpu_file, change):
    """And the one beside it is."""
    row = {**vars(TUNED), **change}
    gpu_file.parent.mkdir()
    gpu_file.write_text(json.dumps({"some_op/half/64": row, "some_op/half/32": vars(TUNED)}))
    assert TABLE.choose(GPU, ("half", 64)) == OURS
    assert TABLE.choose(GPU, ("half", 32)) == TUNED


def test_what_was_tuned_holds_in_this_process_where_it_cannot_be_kept(monkeypatch):
    pytest.importorskip("triton")
    from ops.conftest import random_weight

    from secateurs import ops
    from secateurs.ops.block_sparse_linear import triton as kernels

    monkeypatch.setattr(tuning, "_file", lambda _: None)
    monkeypatch.setattr(tuning, "_tuned", lambda _, tuned={}: tuned)
    monkeypatch.setattr(gpu, "_refuse_place", lambda _: None)
    monkeypatch.setattr(gpu, "_refuse_dtype", lambda _: None)
    best = Config(16, 64, 8, 2)

    def milliseconds(_):
        return 1.0 if kernels.TABLE.choose(GPU, ("few float", 32)) == best else 2.0

    monkeypatch.setattr(tuning, "_milliseconds", milliseconds)
    args = (torch.randn(2, 64), random_weight(32, 64))
    assert ops.autotune(ops.block_sparse_linear, *args) == best
    assert kernels.TABLE.choose(CPU, ("few float", 32)) == best
