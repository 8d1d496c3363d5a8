"""Builds the emulator and the CUDA sources into one program, with the ordinary C++ compiler.

    python tests/emulator/build.py FOLDER [plain | address | thread | faulty]

leaves FOLDER/emulate. "faulty" and "thread" build copies of the sources with every fault of
`faults.py` in them, to be switched on by number.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMMON = ["-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
# Only what kernels do is of interest to ThreadSanitizer: the emulator itself is built without.
FLAGS = {
    "plain": (["-O1"], []),
    "faulty": (["-O1"], []),
    "address": (["-O1", "-fsanitize=address"], []),
    "thread": (["-O1", "-DEMULATOR_TSAN"], ["-fsanitize=thread"]),
}


def build(folder: Path, kind: str = "plain") -> Path:
    """Compile what is older than its sources and return the program."""
    folder.mkdir(parents=True, exist_ok=True)
    everywhere, kernels_only = FLAGS[kind]
    sources = _broken(folder / "csrc") if kind in ("faulty", "thread") else CSRC
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    include = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{sources}"]
    headers = [*HERE.rglob("*.h"), *(sources / "cuda").glob("*.h"), *sources.rglob("*.cuh")]
    newest = max(path.stat().st_mtime for path in headers)

    def compiled(source: Path) -> Path:
        kernel = source.is_relative_to(sources)
        target = folder / f"{source.parent.name}_{source.name}.o"
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return target
        flags = [*COMMON, *everywhere, *(kernels_only if kernel else []), *include]
        _run([compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    units = [
        *sorted((sources / "cuda").glob("*.cu")),
        *sorted((sources / "cuda").glob("*.cpp")),
        *sorted(HERE.rglob("*.cpp")),
    ]
    units = [unit for unit in units if unit.name != "device.cu"]  # asks CUDA's runtime, no kernels
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, units))
    program = folder / "emulate"
    _run([compiler, *everywhere, *kernels_only, *map(str, objects), "-o", str(program)])
    return program


def _broken(folder: Path) -> Path:
    """The sources with every fault in them."""
    from faults import seeded

    for path in sorted((CSRC / "cuda").iterdir()):
        text = seeded(path.name, path.read_text())
        target = folder / path.relative_to(CSRC)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".cu", ".cuh"):
            text = f'#include "emulator/fault.h"\n#line 1 "{path.name}"\n{text}'
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:3]))
