"""The CUDA backend on a GPU, in one call of less than nine minutes: build, tests with skips as
failures, compute-sanitizer on a few of them, then the benchmarks of gpu_kernels.py.

    python benchmarks/gpu.py --json gpu.jsonl

Every step runs in processes of its own and within its share of the time: one that hangs or crashes
costs no other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
TESTS = [str(ROOT / "tests" / "ops" / name) for name in ("test_cuda.py", "test_cuda_gpu.py")]
SMALL = "gpu and not test_cuda_gpu and (bfloat16 and not attention or patterns or add_norm)"
TIMED_OUT = 124  # as timeout(1) has it

# Of what the steps before leave, the share of each part of the benchmarks.
PARTS = {"linears": 0.5, "attentions": 0.5, "patterns": 0.7, "norms": 1.0}


def run(command: Sequence[str], seconds: float, **environment: str) -> int:
    """The exit status of a command, which has so many seconds."""
    return together([command], seconds, **environment)


def together(commands: Sequence[Sequence[str]], seconds: float, **environment: str) -> int:
    """The worst exit status of commands that run at the same time."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **environment}
    deadline, worst = time.monotonic() + seconds, 0
    # Each in a session of its own, to be stopped with all that it started.
    started = [
        subprocess.Popen(command, env=everything, cwd=ROOT, start_new_session=True)
        for command in commands
    ]
    try:
        for process in started:
            worst = max(worst, abs(process.wait(max(0.0, deadline - time.monotonic()))))
    except subprocess.TimeoutExpired as late:
        print(f"stopped after {seconds:.0f} s: {late.cmd}", file=sys.stderr)
        worst = TIMED_OUT
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return worst


def build(seconds: float) -> int:
    """Compile for this machine's GPU and CPU, into the package of this checkout."""
    cmakedir = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"], text=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    configure += [f"-Dpybind11_DIR={cmakedir.strip()}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-DSKBUILD_PROJECT_VERSION=0.1.0"]
    install = ["cmake", "--install", str(BUILD), "--prefix", str(ROOT / "python")]
    wanted = {"SECATEURS_CUDA": "on", "SECATEURS_CUDA_ARCHS": "native", **_given()}
    for command in (configure, ["cmake", "--build", str(BUILD)], install):
        if status := run(command, seconds, **wanted):
            return status
    return 0


def _given() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("SECATEURS_CUDA")}


def test(seconds: float) -> int:
    """The tests of the backend on the GPU; a skip is a failure."""
    return run([*_pytest("gpu")], seconds, SECATEURS_REQUIRE="cuda")


def sanitize(seconds: float) -> int:
    """Bad accesses and races in shared memory, on the tests of small problems."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer was not found: nothing checked", file=sys.stderr)
        return 1
    checks = [
        [tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"]
        for check in ("memcheck", "racecheck")
    ]
    # Each tensor in memory of its own, so that what lies behind it belongs to nobody.
    return together(
        [[*check, *_pytest(SMALL)] for check in checks],
        seconds,
        SECATEURS_REQUIRE="cuda",
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def _pytest(select: str) -> list[str]:
    options = ["-q", "-p", "no:cacheprovider", "--maxfail", "20", "-k", select]
    return [sys.executable, "-m", "pytest", *options, *TESTS]


def benchmark(options: argparse.Namespace, deadline: float) -> int:
    worst = 0
    for part, share in PARTS.items():
        seconds = share * max(0.0, deadline - time.monotonic())
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_kernels.py"), "--part", part]
        command += ["--json", str(Path(options.json).resolve()), "--seconds", str(seconds)]
        command += ["--block", str(options.block)]
        if options.commit:
            command += ["--commit", options.commit]
        worst = max(worst, run(command, seconds + 30))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", required=True, help="JSON lines are appended to this file")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=8.25, help="no row starts later")
    parser.add_argument("--commit", help="of the code, where the checkout cannot tell")
    parser.add_argument("--only", choices=("build", "tests", "sanitizer", "benchmarks"))
    options = parser.parse_args()
    if shutil.which("nvidia-smi") is None:
        print("expected an NVIDIA GPU, found no nvidia-smi", file=sys.stderr)
        return 2
    if shutil.which("nvcc") is None:
        os.environ["PATH"] += os.pathsep + "/usr/local/cuda/bin"
    deadline = time.monotonic() + 60 * options.minutes
    steps = {
        "build": lambda: build(240),
        "tests": lambda: test(90),
        "sanitizer": lambda: sanitize(100),
        "benchmarks": lambda: benchmark(options, deadline),
    }
    failed = 0
    for name, step in steps.items():
        if options.only in (None, name):
            start = time.monotonic()
            status = step()
            print(f"--- {name}: status {status}, {time.monotonic() - start:.0f} s", flush=True)
            failed |= status
            if status and name == "build":
                break
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
