"""Saved models altered in thousands of ways, and what loading each of them comes to.

    python benchmarks/fuzz.py --count 10000 --seed 0

Each seed is a small model with one kind of plan, saved. A try alters one of its files, mostly with
the digests made right again so that the alteration is reached, and loads the folder in a worker
with 8 GB of address space and 20 seconds. It may end in one of these ways:

    equal           the model loads and answers as the seed does, to the bit;
    as said         it loads and answers as a stock model filled from the altered files by the plain
                    reading of them in fuzzing/, which shares no code with the package;
    beyond float32  it loads, and that stock model's answer is NaN or infinite, or a weight's square
                    is: which sums overflow depends on their order, so nothing can be compared;
    refused         one sentence of the package's own: an error of ours, on one line.

Anything else is a fault: another exception, an answer that the files do not say, a crash, a hang, a
connection. Exits nonzero if there is one. `--only N` repeats one try and shows what was altered.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Not the folder of this file: it has a module named as one that tests import.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))
if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from benchmarks.fuzzing import alterations, plain_reading, seeds
from safetensors.torch import load_file
from torch import nn

import secateurs as sc
from secateurs.errors import SecateursError

MEMORY, SECONDS = 8 << 30, 20
HUGE = 1e18  # its square is still a float32
FINE = ("equal", "as said", "beyond float32", "refused")


# Sentences that end in someone's bare key, or show how someone's exception is written.
BARE = re.compile(r"""(damaged|Error): ?\(?('[^']*'|\d+|None)\)?$|\w+Error\(""")


def attempt(number: int, seed: int, folder: Path) -> tuple[str, str, str, str]:
    """Seed, kind and outcome of one try, and what was done and said."""
    name, kind, told = alterations.altered(number, seed, folder)
    connected.clear()
    try:
        loaded = sc.load(folder)
    except SecateursError as error:
        said = str(error)
        lines = said.splitlines()
        fine = len(lines) == 1 and said.isprintable() and len(said.split()) > 3 and len(said) < 1000
        bare = BARE.search(said)
        outcome = "refused" if fine and not bare else "unclear"
        said = f"{type(error).__name__}: {said}"
    except BaseException as error:
        outcome, said = "foreign", "".join(traceback.format_exception(error))[-1500:]
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        outcome, said = _judged(name, loaded, folder), ""
    if connected:
        outcome = "connection"
    return name, kind, outcome, f"{told}\n    {said}"


def _judged(name: str, loaded: nn.Module, folder: Path) -> str:
    want = seeds.seed_answer(name)
    try:
        got = seeds.answer(loaded)
        if got.shape == want.shape and torch.equal(got, want):
            return "equal"
        said = plain_reading.as_said(name.split("/")[0], folder)
    except Exception as error:
        return f"loads, then {type(error).__name__}: {str(error)[:300]}"
    if got.shape != said.shape:
        return "of another shape"
    if not bool(torch.isfinite(said).all()) or largest(folder) > HUGE:
        return "beyond float32"
    if not bool(torch.isfinite(got).all()):
        return "not finite"
    off = float((got - said).abs().max() / said.abs().max().clamp_min(1e-30))
    return "as said" if off < 1e-4 else f"off by {off:.1g}"


def largest(folder: Path) -> float:
    """The largest number that a folder's files hold."""
    found = (t for p in folder.glob("*.safetensors") for t in load_file(p).values())
    return max(float(t.abs().max()) for t in found if t.is_floating_point() and t.numel())


connected: list[Any] = []


def guard() -> None:
    """Note and refuse every connection to anywhere."""

    def refuse(*arguments: Any, **_: Any) -> Any:
        connected.append(arguments)
        raise OSError("no network")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse


def _worker(pipe: Any, memory: int) -> None:
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity(transformers.logging.CRITICAL)
    guard()
    while (task := pipe.recv()) is not None:
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(attempt(*task, Path(folder)))


class Workers:
    """One worker at a time, a new one after each that died or hung."""

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_worker, args=(theirs, self._memory), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, number: int, seed: int) -> tuple[str, str, str, str]:
        name = seeds.SEEDS[number % len(seeds.SEEDS)]
        self._pipe.send((number, seed))
        try:
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
            self._process.kill()
            outcome = "hang"
        except EOFError:
            outcome = "crash"
        self._process.join()
        code = self._process.exitcode
        self._start()
        return name, "?", outcome, f"exit code {code}"

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def table(rows: Counter[tuple[str, str, str]], column: int, title: str) -> str:
    """Outcomes by the seed (0) or the kind (1) of the tries."""
    outcomes = [*FINE, "anything else"]
    lines = [f"| {title} | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 1) + "|"]
    names = sorted({row[column] for row in rows})
    for name in [*names, "all"]:
        counts: Counter[str] = Counter()
        for row, count in rows.items():
            if name in (row[column], "all"):
                counts[row[2] if row[2] in FINE else outcomes[-1]] += count
        lines.append(f"| {name} | {' | '.join(str(counts[o]) for o in outcomes)} |")
    return "\n".join(lines)


def fuzz(numbers: range, seed: int, show: Callable[[str], None]) -> Counter[tuple[str, str, str]]:
    """Outcomes of the tries by seed, kind and outcome; each fault is shown."""
    for name in seeds.SEEDS:  # made once, before the workers are forked
        seeds.seed_answer(name)
    workers, rows = Workers(), Counter()
    for number in numbers:
        name, kind, outcome, told = workers.run(number, seed)
        if outcome == "hang":  # of the try, or of a machine that was busy with something else
            name, kind, outcome, told = workers.run(number, seed)
        rows[name, kind, outcome] += 1
        if outcome not in FINE:
            show(f"--only {number} --seed {seed}: {name}, {kind}: {outcome}: {told}")
    workers.close()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this try alone, in this process")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sys.stdout.reconfigure(errors="backslashreplace")  # alterations are no proper text
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(*attempt(options.only, options.seed, Path(folder)), sep="\n")
        return 0
    numbers = range(options.start, options.start + options.count)
    rows = fuzz(numbers, options.seed, lambda line: print(line, flush=True))
    print(f"\n{table(rows, 0, 'seed')}\n\n{table(rows, 1, 'alteration')}\n")
    faults = sum(count for row, count in rows.items() if row[2] not in FINE)
    print(f"{sum(rows.values())} tries, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
