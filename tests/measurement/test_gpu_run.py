"""How `benchmarks/gpu.py` spends its minutes: what comes first, what a failing step costs, and what
is left behind. GPUs are stand-ins."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from support.benchmark_modules import benchmark_module

gpu, build, running, steps, tables = map(
    benchmark_module, ("gpu", "on_gpu.build", "on_gpu.running", "on_gpu.steps", "on_gpu.tables")
)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def step(name: str, *codes: str, seconds: float = 60, **facts) -> steps.Step:
    return steps.Step(name, "all", seconds, tuple(map(python, codes)), steps.CUDA, **facts)


@pytest.fixture
def run(tmp_path):
    """Runs steps of Python code for some seconds; how each ended, and what was printed."""

    def run(*planned, seconds=60.0):
        log = tmp_path / "all.log"
        outcomes = running.run(planned, time.monotonic() + seconds, lambda _: log)
        printed = log.read_text("utf-8") if log.exists() else ""
        return [outcome.told for outcome in outcomes], printed

    return run


def test_without_a_cuda_module_triton_goes_on_alone(run):
    told, printed = run(
        step("build", "print('no nvcc'); exit(3)", provides=steps.MODULE),
        step("cuda", "print('cuda')", needs=steps.MODULE),
        step("triton", "print('triton')"),
    )
    assert told == ["failed with status 3", "left out: there is no cuda module", "done"]
    assert "no nvcc" in printed
    assert "\ntriton\n" in printed
    assert "\ncuda\n" not in printed


def test_what_was_provided_is_there(run):
    told, _ = run(step("build", "", provides=steps.MODULE), step("cuda", "", needs=steps.MODULE))
    assert told == ["done", "done"]


def test_only_what_is_planned_can_be_missing(run):
    assert run(step("cuda", "", needs=steps.MODULE))[0] == ["done"]


def test_a_crash_hides_nothing_of_the_other_processes(run):
    told, printed = run(
        step("tests", "import os; print('one', flush=True); os.abort()", "print('two')"),
        step("rows", "print('three')"),
    )
    assert told == ["failed with status 6", "done"]
    assert all(word in printed for word in ("\none", "\ntwo", "\nthree"))


def test_what_hangs_is_stopped_with_all_that_it_started(run, monkeypatch):
    monkeypatch.setattr(running, "SHORTEST", 0.0)
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    told, printed = run(step("hangs", code, seconds=2), step("next", ""))
    assert told == ["stopped after 2 s", "done"]
    number = re.search(r"^(\d+)$", printed, re.MULTILINE)[1]
    state = Path(f"/proc/{number}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_that_is_not_there_is_a_failure_in_the_log(run):
    missing = steps.Step("sanitizer", "all", 60, (("no-such-sanitizer",),), steps.CUDA)
    told, printed = run(missing, step("next", ""))
    assert told == ["failed with status 127", "done"]
    assert "no-such-sanitizer does not start" in printed


def test_commands_are_told_when_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(running.time, "time", lambda: 1000.0)
    command = (*python("import sys; print('told', sys.argv[1])"), steps.UNTIL)
    assert running.together([command], 20, tmp_path / "log") == 0
    assert f"told {1020 - running.GRACE}\n" in (tmp_path / "log").read_text("utf-8")


def test_no_step_starts_without_time_or_outlasts_the_deadline(monkeypatch, tmp_path):
    now, given = [0.0], []

    def together(commands, seconds, log, environment):
        given.append(seconds)
        now[0] += seconds
        return running.TIMED_OUT

    monkeypatch.setattr(running, "together", together)
    planned = [step(str(number), "", seconds=60) for number in range(4)]
    outcomes = running.run(planned, 150.0, lambda _: tmp_path / "log", clock=lambda: now[0])
    assert given == [60, 60, 30]
    assert outcomes[-1].told == "left out: no time was left"


PLAN = steps.plan(Path("rows.jsonl"), commit="abc")
NAMES = [planned.name for planned in PLAN]


def test_the_rows_that_decide_most_come_first():
    first = ["build", "tests cuda", "linears.large triton", "linears.large cuda"]
    assert NAMES[:4] == first
    valuable = [name for name in NAMES if re.match(r"linears\.(large|few)|attention\.plain", name)]
    others = [name for name in NAMES if re.match(r"linears\.others|attention\.flex", name)]
    assert max(map(NAMES.index, valuable)) < NAMES.index("sanitizer")
    assert NAMES[-len(others) :] == [*others]
    assert len(valuable) == 6


def test_each_step_finds_what_it_needs_before_it():
    provided = set()
    for planned in PLAN:
        assert planned.needs in {None, *provided}
        assert (planned.needs is None) == (planned.backend == "triton" or planned.name == "build")
        provided.add(planned.provides)


def test_the_files_of_a_run_are_few():
    """Eight come back from where GPUs are lent: rows, table and logs."""
    assert len({planned.kind for planned in PLAN}) + 2 <= 8


@pytest.mark.parametrize("name", [name for name in NAMES if "." in name])
def test_each_part_is_a_function_and_learns_where_rows_go(name):
    (command,) = PLAN[NAMES.index(name)].commands
    part, backend = name.split()
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert options == {
        "--backend": backend,
        "--part": part,
        "--json": "rows.jsonl",
        "--until": steps.UNTIL,
        "--commit": "abc",
    }
    module, _, function = part.partition(".")
    assert callable(getattr(benchmark_module(f"on_gpu.{module}"), function))


def selected(expression: str, name: str) -> bool:
    """Whether `-k expression` takes a test, by the names it is known by."""
    word = r"\b(?!(?:and|or|not)\b)[\w.-]+"
    return eval(re.sub(word, lambda found: str(found[0].lower() in name.lower()), expression))


class Collected:
    """Takes the names of the tests that pytest collects, without their folders."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_modifyitems(self, items) -> None:
        self.names += [item.nodeid.rpartition("/")[2] for item in items]


@pytest.fixture(scope="module")
def collected():
    taken = Collected()
    files = [str(steps.TESTS / name) for name in (*steps.CUDA_FILES, *steps.TRITON_FILES)]
    # In this process: what the tests import is here already.
    status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *files], [taken])
    assert status == 0
    return taken.names


def test_every_test_of_the_cuda_kernels_runs_in_one_process_only(collected):
    for name in collected:
        if name.startswith(("test_cuda.py", "test_cuda_gpu.py")):
            shares = [share for share in steps.CUDA_TESTS if selected(share, name)]
            on_gpu = name.startswith("test_cuda_gpu") or "gpu" in name
            assert len(shares) == on_gpu, name


def test_every_test_of_the_triton_kernels_runs_in_one_process_only(collected):
    for name in collected:
        if name.startswith(("test_triton_gpu.py", "test_cuda_graphs.py")):
            shares = [share for share in steps.TRITON_TESTS if selected(share, name)]
            on_gpu = name.startswith("test_triton_gpu") or "captured" in name
            assert len(shares) == on_gpu, name


def test_the_sanitizer_takes_a_dozen_tests_of_every_kernel(collected):
    taken = [n for n in collected if n.startswith("test_cuda.py") and selected(steps.SANITIZED, n)]
    assert 10 <= len(taken) <= 16
    kernels = ("block_sparse", "vector_patterns", "library", "attention", "add_norm")
    assert all(any(kernel in name for name in taken) for kernel in kernels)


def row(**facts):
    common = {"op": "attention", "layer": "bert-base", "pattern": "local 64 | sinks 4", "ok": True}
    common |= {"shape": [4, 12], "block": [64, 64], "density": 0.25, "dtype": "bfloat16"}
    common |= {"baseline": "SDPA", "baseline_ms": 0.3, "ms": 0.1, "speedup": 3.0}
    return {**common, "backend": "cuda", "device": "GPU", "commit": "abc", **facts}


def test_the_table_has_a_line_for_each_problem_and_peer():
    rows = [
        row(l2_gb_s=5500.4, copy_gb_s=None),
        row(backend="triton", ms=0.2, speedup=1.5, baseline_ms=0.31, operands="addresses"),
        row(backend="triton", ms=0.15, speedup=2.0, operands="descriptors"),
        row(density=0.5, ok=False),
    ]
    text = tables.report(rows, [running.Outcome("build", "done", 44.6)])
    assert text.startswith("GPU, 5500 L2 GB/s, commit abc\n")
    assert "| build | done | 45 |" in text
    problem = "| attention bert-base local 64 \\| sinks 4 | 4x12 | 64x64 |"
    assert f"{problem} 0.25 | SDPA | 0.3000 | 0.1000, 3.00x | 0.1500, 2.00x (descriptors) |" in text
    assert f"{problem} 0.50 | SDPA | 0.3000 | 0.1000, 3.00x WRONG |  |" in text


def test_a_row_that_was_cut_off_is_left_out_of_the_table(tmp_path):
    assert tables.read(tmp_path / "none.jsonl") == []
    (tmp_path / "rows.jsonl").write_text('{"op": 1}\n{"op":')
    assert tables.read(tmp_path / "rows.jsonl") == [{"op": 1}]
    assert "| build | done | 1 |" in tables.report([], [running.Outcome("build", "done", 1)])


@pytest.mark.parametrize(
    ("prebuilt_runs", "build_runs", "built", "status"),
    [(True, True, 0, 0), (False, True, 1, 0), (False, False, 1, 1)],
)
def test_a_prebuilt_module_that_does_not_run_is_built_anew(
    monkeypatch, tmp_path, prebuilt_runs, build_runs, built, status
):
    folder, package, builds = tmp_path / "modules", tmp_path / "package", []
    folder.mkdir()
    package.mkdir()
    (folder / "_C_cuda.cpython-312.so").write_text("prebuilt")
    monkeypatch.setattr(build, "PACKAGE", package)
    monkeypatch.setattr(build, "build", lambda: builds.append(1) or True)
    monkeypatch.setattr(build, "usable", lambda: build_runs if builds else prebuilt_runs)
    monkeypatch.setattr(sys, "argv", ["build", "--prebuilt", str(folder)])
    assert build.main() == status
    assert len(builds) == built
    assert (package / "_C_cuda.cpython-312.so").read_text() == "prebuilt"


def test_a_folder_without_modules_is_told_and_built(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "build", lambda: True)
    monkeypatch.setattr(build, "usable", lambda: True)
    monkeypatch.setattr(sys, "argv", ["build", "--prebuilt", str(tmp_path)])
    assert build.main() == 0
    assert "expected modules _C_*.so" in capsys.readouterr().err


def test_a_run_leaves_rows_logs_and_a_table(monkeypatch, tmp_path):
    """From the command line to the table, with steps of Python in the place of the real ones."""
    rows = tmp_path / "out" / "gpu.jsonl"
    write = f"import json; open({str(rows)!r}, 'a').write(json.dumps({row()}) + chr(10))"
    planned = (
        step("build", "print('built')", provides=steps.MODULE),
        step("rows", write, needs=steps.MODULE),
        step("left alone", "exit(1)"),
    )
    monkeypatch.setattr(steps, "plan", lambda *_: planned)
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    rows.parent.mkdir()
    rows.write_text('{"of": "an earlier run"}\n')
    command = ["gpu.py", "--json", str(rows), "--only", "build", "rows"]
    monkeypatch.setattr(sys, "argv", command)
    assert gpu.main() == 0
    assert sorted(path.name for path in rows.parent.iterdir()) == [
        "gpu.all.log",
        "gpu.jsonl",
        "gpu.md",
    ]
    table = (rows.parent / "gpu.md").read_text("utf-8")
    assert "| rows | done |" in table
    assert table.count("| attention") == 1
    monkeypatch.setattr(sys, "argv", [*command[:3], "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu.main()
