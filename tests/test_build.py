"""What was built: modules that load without a GPU, and no wide instructions outside their unit."""

from __future__ import annotations

import importlib.machinery
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import secateurs
from secateurs.ops import build_info

CSRC = Path(__file__).parents[1] / "csrc"


def module(name: str) -> Path | None:
    folder = Path(secateurs.__file__).parent
    files = [folder / (name + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return next((file for file in files if file.exists()), None)


def test_build_records_where_it_comes_from():
    info = build_info()["cpu"]
    assert info["version"] == secateurs.__version__
    assert info["compiler"]
    assert "portable" in info["isas"]
    if platform.machine() == "x86_64":
        assert info["isas"] == [
            "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx_vnni", "avx2", "portable",
        ]  # fmt: skip


def test_cpu_module_brings_neither_torch_nor_a_runtime_of_its_own():
    """The name of a library a module needs stands in its bytes."""
    data = module("_C_cpu").read_bytes()
    assert b"GOMP_parallel" in data  # OpenMP is compiled in, or the test below says nothing
    for library in (b"libgomp", b"libomp", b"libiomp", b"libtorch", b"libc10"):
        assert library not in data


def test_cuda_module_loads_without_a_driver():
    """Built wherever nvcc is; what it cannot do here it says in a sentence."""
    info = build_info()["cuda"]
    path = module("_C_cuda")
    if path is None:
        assert "built without CUDA" in info["missing"]
        return
    assert info["toolkit"]
    assert info["archs"]
    assert info["devices"] or "CUDA failed while counting GPUs" in info["unusable"]
    data = path.read_bytes()
    for library in (b"libcudart.so", b"libtorch"):
        assert library not in data


@pytest.mark.parametrize(
    ("isa", "flags"),
    [
        ("portable", ""),
        ("avx2", "-mavx2 -mfma"),
        ("avx512", "-mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl"),
    ],
)
def test_wide_instructions_stay_in_their_unit(isa, flags, tmp_path):
    """Without optimisation every inline function in use is emitted. One that is shared with other
    files (weak) could be the copy the linker keeps for all of them, and crash older CPUs."""
    if not (CSRC.exists() and shutil.which("g++") and shutil.which("nm")):
        pytest.skip("needs the sources, g++ and nm")
    if platform.machine() != "x86_64":
        pytest.skip("these are x86-64 units")
    unit = tmp_path / "unit.o"
    source = CSRC / "cpu" / "instruction_sets" / f"{isa}.cpp"
    command = ["g++", "-std=c++17", "-O0", "-fPIC", "-fopenmp", f"-I{CSRC}", *flags.split()]
    subprocess.run([*command, "-c", str(source), "-o", str(unit)], check=True, timeout=300)
    symbols = subprocess.run(["nm", "-C", str(unit)], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in symbols.stdout.splitlines()]
    shared = [
        name for *_, kind, name in lines if kind in "TWVuRD" and not name.startswith("DW.ref")
    ]
    assert shared == [f"secateurs::cpu::{isa}::kernels"]
