"""The CUDA kernels on the CPU, by the emulator beside this file: the sources that nvcc compiles,
under schedules that look for races, against formulas in double; and with faults, each of which must
be noticed."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from build import CSRC, build
from faults import FAULTS

pytestmark = [
    pytest.mark.skipif(not CSRC.exists(), reason="the C++ sources are not beside these tests"),
    pytest.mark.skipif(
        platform.system() != "Linux" or not (shutil.which("g++") or os.environ.get("CXX")),
        reason="the emulator needs Linux and a C++ compiler",
    ),
]


RACE = 66
TSAN = f"halt_on_error=1:exitcode={RACE}:symbolize=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(os.environ.get("SECATEURS_EMULATOR") or tmp_path_factory.mktemp("emulator"))


def emulate(program: Path, *arguments: object, **environment: str):
    """The program's report, the last line it printed; what it printed before; its exit status."""
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    *lines, last = done.stdout.splitlines() or [""]
    assert last.startswith("{"), f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(last), lines, done.returncode


def instances(program: Path) -> set[str]:
    """Every kernel in the program: the functions that csrc/cuda declares as `__global__`."""
    names = set()
    for source in (CSRC / "cuda").rglob("*.cu*"):
        names |= set(
            re.findall(r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(", source.read_text())
        )
    symbols = subprocess.run(["nm", "-C", str(program)], capture_output=True, text=True, check=True)
    space = r"void secateurs::cuda::(?:\(anonymous namespace\)::)?"
    kernel = re.compile(rf"\b[TtWw] ({space}(?:{'|'.join(names)})<.*>\(.*\))$", re.MULTILINE)
    return set(kernel.findall(symbols.stdout))


@pytest.fixture
def tell(capsys):
    """Prints what a run went through, also where it passes."""

    def tell(told: object) -> None:
        with capsys.disabled():
            print(f"\n  {told}", end=" ", flush=True)

    return tell


def check(tell, report, lines, status):
    assert report["failures"] == 0, "\n".join(lines[:20])
    assert status == 0
    assert report["kernels"] > 0
    tell(report)


def test_emulator_tells_what_no_kernel_may_do(folder, tell):
    """Kernels that deadlock, diverge, write or copy where they must not: each is told so."""
    check(tell, *emulate(build(folder / "plain"), "run", 20, "machine"))


def test_emulated_kernels_agree_with_the_formulas(folder, tell):
    """Every instance of every kernel, on small and odd problems, under several schedules."""
    program = build(folder / "plain")
    report, lines, status = emulate(program, "run", 6)
    check(tell, report, lines, status)
    own, _, _ = emulate(program, "run", 1, "machine")  # the emulator's own small kernels
    assert report["kernels"] - own["kernels"] == len(instances(program))


def test_emulated_kernels_under_address_sanitizer(folder, tell):
    program = build(folder / "address", "address")
    # Threads that are given up after a mistake leak what they held.
    check(tell, *emulate(program, "run", 1, ASAN_OPTIONS="detect_leaks=0"))


def test_emulated_kernels_under_thread_sanitizer(folder, tell):
    """Any two accesses to shared memory that no barrier orders are a race, whatever the result."""
    program = build(folder / "thread", "thread")
    check(tell, *emulate(program, "run", 1, "bfloat", TSAN_OPTIONS=TSAN))
    for number, fault in enumerate(FAULTS, 1):
        if fault.races:
            command = [str(program), "run", "1", fault.cases, str(number)]
            environment = {**os.environ, "TSAN_OPTIONS": TSAN}
            status = subprocess.run(command, capture_output=True, env=environment).returncode
            assert status == RACE, f"no race found with {fault}"


def test_emulator_notices_every_seeded_fault(folder, tell):
    program = build(folder / "faulty", "faulty")
    check(tell, *emulate(program, "run", 1))  # asleep, they change nothing

    def caught(numbered):
        number, fault = numbered
        return emulate(program, "fault", number, 8, fault.cases)[0]["caught"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        noticed = list(pool.map(caught, enumerate(FAULTS, 1)))
    tell(f"{sum(noticed)} faults noticed of {len(FAULTS)} seeded")
    missed = [f for f, seen in zip(FAULTS, noticed, strict=True) if not (seen or f.silent)]
    assert missed == []
