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
import sysconfig
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
# What the binding wants to know of its build.
RECORD = [
    f'-DSECATEURS_{name}="emulated"' for name in ("VERSION", "COMMIT", "COMPILER", "CUDA_ARCHS")
]


def build(folder: Path, kind: str = "plain") -> Path:
    """Compile what is older than its sources and return the program."""
    everywhere, kernels_only = FLAGS[kind]
    sources = _broken(folder / "csrc") if kind in ("faulty", "thread") else CSRC
    objects = [
        *_compile(folder, _kernels(sources), sources, [*everywhere, *kernels_only]),
        *_compile(folder, [*_emulator(), HERE / "main.cpp"], sources, everywhere),
        *_compile(folder, sorted((HERE / "cases").glob("*.cpp")), sources, everywhere),
    ]
    return _link(folder / "emulate", objects, [*everywhere, *kernels_only])


def build_module(folder: Path) -> Path:
    """`_C_cuda` for CPU tensors: the binding and the kernels on the emulator."""
    import torch  # brings pybind11's headers

    units = [*(CSRC / "bindings" / "cuda").glob("*.cpp"), HERE / "module" / "device.cpp"]
    headers = [sysconfig.get_path("include"), Path(torch.__file__).parent / "include"]
    flags = ["-O1", "-fPIC", *RECORD, *(f"-isystem{path}" for path in headers)]
    objects = _compile(folder, units + _kernels(CSRC) + _emulator(), CSRC, flags)
    return _link(folder / "_C_cuda.so", objects, ["-shared"])


def _kernels(sources: Path) -> list[Path]:
    units = [*(sources / "cuda").rglob("*.cu"), *(sources / "cuda").rglob("*.cpp")]
    return sorted(unit for unit in units if unit.name != "device.cu")  # asks CUDA's runtime


def _emulator() -> list[Path]:
    return sorted((HERE / "emulator").glob("*.cpp"))


def _compile(folder: Path, units: list[Path], sources: Path, flags: list[str]) -> list[Path]:
    headers = [*HERE.rglob("*.h"), *CSRC.rglob("*.h"), *sources.rglob("*.cuh")]
    newest = max(path.stat().st_mtime for path in [*headers, HERE / "build.py"])
    include = [f"-I{HERE / 'include'}", f"-I{HERE}", f"-I{sources}", f"-I{CSRC}"]
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(unit: Path) -> Path:
        target = folder / f"{unit.parent.name}_{unit.name}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, unit.stat().st_mtime):
            _run([*COMMON, *flags, *include, "-x", "c++", "-c", str(unit), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compiled, units))


def _link(target: Path, objects: list[Path], flags: list[str]) -> Path:
    _run([*flags, *map(str, objects), "-o", str(target)])
    return target


def _broken(folder: Path) -> Path:
    """The sources with every fault in them."""
    from faults import seeded

    for path in sorted(p for p in (CSRC / "cuda").rglob("*") if p.is_file()):
        text = seeded(path.name, path.read_text())
        target = folder / path.relative_to(CSRC)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".cu", ".cuh", ".cpp", ".h"):
            text = f'#include "emulator/fault.h"\n#line 1 "{path.name}"\n{text}'
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    return folder


def _run(arguments: list[str]) -> None:
    command = [os.environ.get("CXX") or shutil.which("g++") or "c++", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    if done.stderr:
        print(done.stderr, file=sys.stderr)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:3]))
