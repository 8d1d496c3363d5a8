"""Runs steps one behind the other, each within its time and in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.on_gpu.steps import UNTIL, Step

ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT, NOT_FOUND = 124, 127  # as timeout(1) and a shell have them
SHORTEST = 8.0  # seconds, in which a step can do anything at all
GRACE = 8.0  # seconds from when a command should end by itself to when it is stopped
TAIL = 15  # lines of a step that failed


@dataclass(frozen=True)
class Outcome:
    """How a step ended: `told` is "done", or why it is not."""

    name: str
    told: str
    seconds: float = 0.0


def run(
    steps: Iterable[Step],
    deadline: float,
    log: Callable[[str], Path],
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run steps until the deadline; one that fails, hangs or has no time ends no other.

    Args:
        deadline: by `clock`; what then runs is stopped.
        log: the file that takes what a kind of step prints.
    """
    steps, outcomes = list(steps), []
    missing = {step.provides for step in steps if step.provides}
    for step in steps:
        start = clock()
        seconds = min(step.seconds, deadline - start)
        if step.needs in missing:
            told = f"left out: there is no {step.needs}"
        elif seconds < SHORTEST:
            told = "left out: no time was left"
        else:
            status = together(step.commands, seconds, log(step.kind), step.environment)
            told = {0: "done", TIMED_OUT: f"stopped after {seconds:.0f} s"}.get(
                status, f"failed with status {status}"
            )
            if status == 0:
                missing.discard(step.provides)
        outcomes.append(Outcome(step.name, told, clock() - start))
        print(f"--- {step.name}: {told}, {outcomes[-1].seconds:.0f} s", flush=True)
    return outcomes


def together(
    commands: Sequence[Sequence[str]],
    seconds: float,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run commands at the same time, append what each prints to `log`, and return the worst exit
    status."""
    path = os.pathsep.join(filter(None, (str(ROOT / "python"), os.environ.get("PYTHONPATH"))))
    everything = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
    deadline = time.monotonic() + seconds
    soon = str(time.time() + seconds - GRACE)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(number) for number in range(len(commands))]
        started = [
            _start([soon if part == UNTIL else part for part in command], output, everything)
            for command, output in zip(commands, outputs, strict=True)
        ]
        statuses = [_end(process, deadline) for process in started]
        for command, output, status in zip(commands, outputs, statuses, strict=True):
            printed = output.read_bytes()
            with log.open("ab") as file:
                file.write(f"$ {' '.join(command)}\n".encode() + printed)
                file.write(f"\n--- status {status}\n\n".encode())
            if status:
                last = printed.decode(errors="replace").splitlines()[-TAIL:]
                print("\n".join(last), file=sys.stderr, flush=True)
    return max(statuses)


def _start(
    command: Sequence[str], output: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes] | None:
    """Start a command in a session of its own, to be stopped with all that it starts; None where
    there is no such program."""
    with output.open("wb") as file:
        try:
            return subprocess.Popen(
                command,
                env=environment,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{command[0]} does not start: {error}\n".encode())
            return None


def _end(process: subprocess.Popen[bytes] | None, deadline: float) -> int:
    """Wait for a process until the deadline, then stop it and what it has started."""
    if process is None:
        return NOT_FOUND
    try:
        return abs(process.wait(max(0.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return TIMED_OUT
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
