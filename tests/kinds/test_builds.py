"""Kind: a build that fails where it should fall back, a module that fails where it should refuse,
and what is done on the wrong GPU.

`cmake` is asked with stand-ins for nvidia-smi and nvcc on PATH, and nothing is compiled; GPUs are
stand-ins too."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from secateurs import ops
from secateurs.errors import FormatError, OperandError
from secateurs.formats import VectorWeight
from secateurs.formats.vector_nm import two_four_places
from secateurs.ops._backends import cuda
from secateurs.ops._core import gpu

ROOT = Path(__file__).parents[2]
needs_cmake = pytest.mark.skipif(
    not ((ROOT / "CMakeLists.txt").exists() and shutil.which("cmake") and shutil.which("g++")),
    reason="needs the sources, cmake and g++",
)

# An nvcc of the given version that compiles whatever it is given; a shell script's lines.
NVCC = """
case "$*" in
  *--version*) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  *) {compile} ;;
esac
"""
COMPILES = 'while [ $# -gt 1 ]; do shift; done; touch "$1"'
REFUSES_HOST = """
echo "In file included from <command-line>:"
echo "crt/host_config.h:143:2: error: #error -- unsupported GNU version!" >&2
exit 1"""
REFUSES_ARCH = "echo \"nvcc fatal   : Unsupported gpu architecture 'compute_120'\" >&2; exit 1"
HANGS = "exec sleep 600"

RELEASE = "80-real;86-real;89-real;90a-real;100-real;120-real;90-virtual"

GOOD_NVCC = NVCC.format(version="13.0", compile=COMPILES)

# What stands on PATH, and what the reason must say: {tool: script}, "" for no such tool.
WITHOUT = {
    "a T4": ({"nvidia-smi": "echo 7.5", "nvcc": GOOD_NVCC}, "architecture 75, .* 80 or newer"),
    "two old GPUs": (
        {"nvidia-smi": "printf '6.1\\n7.0\\n'", "nvcc": GOOD_NVCC},
        "architecture 61 and 70, .* 80 or newer",
    ),
    "CUDA 12.4": (
        {"nvidia-smi": "echo 8.0", "nvcc": NVCC.format(version="12.4", compile=COMPILES)},
        "is of CUDA 12.4, the kernels need 12.5 or newer",
    ),
    "CUDA 9.2": (
        {"nvidia-smi": "echo 8.0", "nvcc": NVCC.format(version="9.2", compile=COMPILES)},
        "is of CUDA 9.2, the kernels need 12.5 or newer",
    ),
    "no nvcc": ({"nvidia-smi": "echo 9.0", "nvcc": ""}, "no nvcc was found"),
    "nvcc that does not start": (
        {"nvcc": "echo 'nvcc: error while loading shared libraries: libX.so' >&2; exit 127"},
        "does not tell its version: .*libX.so",
    ),
    "nvcc that says nothing": ({"nvcc": "exit 3"}, "does not tell its version: exit status 3"),
    "nvcc that hangs": ({"nvcc": HANGS}, "does not tell its version: .*timeout"),
    "nvcc that hangs compiling": (
        {"nvcc": NVCC.format(version="13.0", compile=HANGS)},
        "does not compile for 80-real 90a-real: .*timeout",
    ),
    "nvcc that refuses the host compiler": (
        {"nvcc": NVCC.format(version="12.6", compile=REFUSES_HOST)},
        "does not compile for 80-real 90a-real: .*unsupported GNU version!",
    ),
    "a GPU newer than nvcc": (
        {"nvidia-smi": "echo 12.0", "nvcc": NVCC.format(version="12.6", compile=REFUSES_ARCH)},
        "does not compile for 120-real: .*Unsupported gpu architecture 'compute_120'",
    ),
    "nvcc that writes nothing": (
        {"nvcc": NVCC.format(version="13.0", compile=":")},
        "leaves nothing behind",
    ),
}


@pytest.fixture
def machine(tmp_path):
    """Makes a PATH with stand-ins for tools of CUDA, and the environment of a build with it."""

    def environment(tools: dict[str, str], **variables: str) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for tool in ("sh", "sleep", "touch", "cmake", "make", "g++", "c++", "git", "ld", "as"):
            if found := shutil.which(tool):
                (folder / tool).symlink_to(found)
        for name, script in tools.items():
            if script:
                (folder / name).write_text(f"#!/bin/sh\n{script}\n")
                (folder / name).chmod(0o755)
        return {"PATH": str(folder), "HOME": str(tmp_path), **variables}

    return environment


def find_toolkit(folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What the build decides: the architectures, and the reason why there are none."""
    script = folder / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/csrc/cuda/toolkit.cmake")\n'
        "find_toolkit(compiler archs reason)\n"
        'message("${archs}|${reason}")\n'
    )
    patience = ["-DSECATEURS_PATIENCE=1", "-DSECATEURS_TRIAL_PATIENCE=1"]
    done = subprocess.run(
        ["cmake", *patience, "-P", str(script)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    archs, _, reason = done.stderr.strip().splitlines()[-1].partition("|")
    return archs, reason


def configure(folder: Path, environment: dict[str, str], *more: str) -> subprocess.CompletedProcess:
    """CMake's configure step of the whole package; what finds Python is a stand-in too."""
    pybind11 = folder / "pybind11"
    pybind11.mkdir()
    (pybind11 / "pybind11Config.cmake").write_text(
        "function(pybind11_add_module name)\n"
        "  list(REMOVE_ITEM ARGN NO_EXTRAS)\n"
        "  add_library(${name} MODULE ${ARGN})\n"
        "endfunction()\n"
    )
    settings = ["-DSKBUILD_PROJECT_VERSION=0.0.0", f"-Dpybind11_DIR={pybind11}"]
    command = ["cmake", "-S", str(ROOT), "-B", str(folder / "build"), *settings]
    return subprocess.run(
        [*command, "-DSECATEURS_PATIENCE=1", *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_cmake
@pytest.mark.parametrize("case", WITHOUT)
def test_a_machine_without_a_fit_toolkit_or_gpu_is_told_why(machine, tmp_path, case):
    tools, expected = WITHOUT[case]
    _, reason = find_toolkit(tmp_path, machine(tools))
    assert re.search(expected, reason), reason
    assert "\n" not in reason


@needs_cmake
@pytest.mark.parametrize(
    ("smi", "variables", "archs"),
    [
        ("echo 8.6", {}, "86-real"),
        ("printf '7.5\\n9.0\\n8.6\\n8.6\\n'", {}, "90a-real;86-real"),
        ("", {}, "80-real;90a-real"),
        (HANGS, {}, "80-real;90a-real"),
        ("sleep 600", {}, "80-real;90a-real"),
        ("echo 'NVIDIA-SMI 535.54 has failed'; exit 9", {}, "80-real;90a-real"),
        ("echo '[N/A]'", {}, "80-real;90a-real"),
        ("echo 7.5", {"SECATEURS_CUDA_ARCHS": "80,90a"}, "80;90a"),
        ("echo 8.0", {"SECATEURS_CUDA_ARCHS": "75;86-real"}, "86-real"),
        ("echo 8.0", {"SECATEURS_CUDA_ARCHS": "release"}, RELEASE),
    ],
    ids=[
        "one",
        "mixed",
        "absent",
        "hangs",
        "child hangs",
        "fails",
        "n/a",
        "asked",
        "asked too low",
        "release",
    ],
)
def test_what_is_compiled_for(machine, tmp_path, smi, variables, archs):
    environment = machine({"nvidia-smi": smi, "nvcc": GOOD_NVCC}, **variables)
    assert find_toolkit(tmp_path, environment) == (archs, "")


@needs_cmake
def test_windows_is_refused_before_anything_is_compiled(machine, tmp_path):
    done = configure(tmp_path, machine({}), "-DCMAKE_SYSTEM_NAME=Windows")
    told = " ".join(done.stderr.split())
    assert done.returncode
    assert "expected Linux or macOS, got Windows: the kernels are written" in told
    assert "compiler" not in told


@needs_cmake
def test_the_build_goes_on_without_cuda_and_keeps_the_reason(machine, tmp_path):
    done = configure(tmp_path, machine(WITHOUT["a T4"][0]))
    assert done.returncode == 0, done.stderr
    assert "Building without _C_cuda: the GPUs of this machine" in done.stdout
    kept = runpy.run_path(str(tmp_path / "build" / "csrc" / "cuda" / "_cuda_build.py"))
    assert "architecture 75" in kept["WHY_MISSING"]
    installed = (tmp_path / "build" / "csrc" / "cuda" / "cmake_install.cmake").read_text()
    assert "_cuda_build.py" in installed
    assert "_C_cuda" not in installed.replace("_cuda_build", "")


@needs_cmake
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SECATEURS_CUDA": "on"}, "SECATEURS_CUDA=on, but the GPUs of this machine"),
        ({"SECATEURS_CUDA": "perhaps"}, 'must be auto, on or off, got "perhaps"'),
        ({"SECATEURS_CUDA_ARCHS": "hopper"}, 'such as "80;90a", got "hopper"'),
        ({"SECATEURS_CUDA_KERNELS": "/nowhere"}, "in SECATEURS_CUDA_KERNELS=/nowhere, which has"),
    ],
    ids=["on", "unknown", "unknown architecture", "no kernels"],
)
def test_what_was_demanded_fails_in_a_sentence(machine, tmp_path, variables, expected):
    done = configure(tmp_path, machine(WITHOUT["a T4"][0], **variables))
    assert done.returncode != 0
    assert expected in " ".join(done.stderr.split())


@needs_cmake
def test_off_is_a_reason_too(machine, tmp_path):
    done = configure(tmp_path, machine({"nvcc": GOOD_NVCC}, SECATEURS_CUDA="off"))
    assert done.returncode == 0, done.stderr
    kept = runpy.run_path(str(tmp_path / "build" / "csrc" / "cuda" / "_cuda_build.py"))
    assert kept["WHY_MISSING"] == "SECATEURS_CUDA=off when it was built"


def test_the_reason_is_told_by_the_package(monkeypatch):
    record = SimpleNamespace(WHY_MISSING="the GPUs of this machine are of architecture 75")
    monkeypatch.setitem(sys.modules, "secateurs._cuda_build", record)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: None)
    told = cuda._why_missing(ImportError("cannot import name '_C_cuda'"))
    assert told == "built without CUDA: the GPUs of this machine are of architecture 75"
    monkeypatch.setattr(cuda, "_C_cuda", None)
    monkeypatch.setattr(cuda, "_missing", told)
    assert cuda.build_info() == {"missing": told}
    assert cuda.refuse(torch.zeros(1)) == told


def test_a_module_that_does_not_load_is_told_from_one_that_is_absent(monkeypatch):
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda _: object())
    told = cuda._why_missing(ImportError("undefined symbol: cudaLaunchKernelExC"))
    assert told == "the CUDA module does not load (undefined symbol: cudaLaunchKernelExC)"


GPU = torch.device("cuda", 0)
H100, B200, A100 = (9, 0), (10, 0), (8, 0)


def built_module(archs: str, runtime: tuple[int, int], driver: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        build_info=lambda: {"toolkit": ".".join(map(str, runtime)), "archs": archs},
        runtime_version=lambda: runtime,
        driver_version=lambda: driver,
    )


DRIVERS = {
    "newer driver": ("80-real", (12, 8), (13, 1), A100, None),
    "same": ("90a-real", (13, 0), (13, 0), H100, None),
    "older minor, machine code": ("80-real 90a-real", (12, 8), (12, 2), H100, None),
    "older minor, both": ("86", (12, 8), (12, 2), (8, 6), None),
    "older minor, PTX": (
        "80-real 90-virtual", (12, 8), (12, 2), B200,
        "compute capability 10.0 needs its PTX translated, and the driver takes that of CUDA 12.2, "
        "not of 12.8",
    ),
    "newer minor, PTX": ("80-real 90-virtual", (12, 8), (12, 9), B200, None),
    "older major": (
        "90a-real", (13, 0), (12, 4), H100,
        "it was linked with CUDA 13.0, the driver takes up to 12.4",
    ),
    "older major, higher minor": (
        "90a-real", (13, 0), (12, 9), H100,
        "it was linked with CUDA 13.0, the driver takes up to 12.9",
    ),
    "no driver": ("90a-real", (13, 0), (0, 0), H100, "there is no NVIDIA driver"),
}  # fmt: skip


@pytest.mark.parametrize("case", DRIVERS)
def test_the_driver_is_compared_with_the_runtime(monkeypatch, case):
    archs, runtime, driver, capability, expected = DRIVERS[case]
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    refusal = cuda._refuse_device.__wrapped__(built_module(archs, runtime, driver), GPU)
    assert refusal == expected


def test_a_driver_that_cannot_be_asked_is_a_refusal(monkeypatch):
    def ask():
        raise RuntimeError("CUDA failed while asking for the driver's version: unknown error")

    module = built_module("90a-real", (13, 0), (13, 0))
    module.driver_version = ask
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "unknown error" in cuda._refuse_device.__wrapped__(module, GPU)


def test_behind_a_driver_too_old_triton_is_reached(monkeypatch):
    """The sentence stands in `explain_choice`, and the next backend has the call."""
    from secateurs.formats import BlockSparseWeight

    module = built_module("90a-real", (13, 0), (12, 4))
    refusal = cuda._refuse_device.__wrapped__
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(cuda, "_C_cuda", module)
    monkeypatch.setattr(cuda, "_refuse_device", lambda module, _: refusal(module, GPU))
    monkeypatch.setattr(gpu, "_refuse_place", lambda _: None)
    pytest.importorskip("triton")
    weight = BlockSparseWeight.pack(torch.ones(32, 32).half())
    choice = ops.explain_choice(ops.block_sparse_linear, torch.ones(1, 32).half(), weight)
    assert choice.backend == "triton"
    assert choice.refusals["cuda"] == "it was linked with CUDA 13.0, the driver takes up to 12.4"


def two_four(n: int = 32, k: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(n, k // 4, 4, dtype=torch.bool)
    keep.scatter_(2, weight.view(n, k // 4, 4).abs().topk(2, dim=2).indices, True)
    return weight, keep.view(n, k)


def test_places_of_two_four_are_packed_with_the_weight_and_travel_with_it():
    from copy import deepcopy

    from secateurs.conversion.modules.pattern_linear import PatternLinear

    weight, keep = two_four()
    packed = VectorWeight.pack(weight, keep, 1)
    assert torch.equal(packed.places, two_four_places(packed.columns, (32, 64)))
    module = deepcopy(PatternLinear(packed, None))
    assert torch.equal(module.weight.places, packed.places)
    assert module.to("meta").weight.places.device.type == "meta"
    x = torch.randn(3, 64)
    args = ops.pattern_linear.__globals__["arguments"](x, packed)
    assert args[2] is packed.places  # what every backend is given, and none derives
    assert torch.equal(ops.pattern_linear(x, packed), x @ (weight * keep).T)


def test_without_places_two_four_is_refused_rather_than_derived_in_a_call():
    weight, keep = two_four()
    packed = VectorWeight.pack(weight, keep, 1)
    without = VectorWeight(packed.values, packed.columns, packed.shape)
    refusal = ops.explain_choice(ops.pattern_linear, torch.randn(3, 64), without).refusals["cuda"]
    assert "their places packed with the weight" in refusal
    assert two_four_places(packed.columns[:, :-1], (32, 62)) is None
    assert VectorWeight.pack(weight, keep.roll(1, dims=1), 1).places is None


def test_places_that_are_not_the_weights_are_refused():
    weight, keep = two_four()
    packed, x = VectorWeight.pack(weight, keep, 1), torch.randn(3, 64)
    with pytest.raises(FormatError, match="places must be those of the columns"):
        replace(packed, places=packed.places.flip(0)).validate()
    for places in (packed.places[:1], packed.places.long(), packed.places[..., :1]):
        with pytest.raises(OperandError, match="int32 places"):
            ops.pattern_linear(x, replace(packed, places=places))
