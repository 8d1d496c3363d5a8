"""The CPU module: instruction sets are chosen, forced, refused; threads and OpenMP are torch's."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ops.test_dispatch import run
from secateurs.errors import BackendError
from secateurs.ops import build_info
from secateurs.ops._backends import cpu, openmp

IMPORT = "import torch; from secateurs.ops import attention, cpu; x = torch.randn(1, 1, 2, 8); "


def test_best_supported_instruction_set_is_the_default():
    assert run(IMPORT + "print(cpu.isa())", SECATEURS_CPU_ISA="").stdout.strip() == cpu.isas()[0]
    assert cpu.isas()[-1] == "portable"


def test_environment_forces_an_instruction_set():
    code = IMPORT + "print(cpu.isa())"
    assert run(code, SECATEURS_CPU_ISA="portable").stdout.strip() == "portable"


def test_unknown_instruction_set_is_refused_at_first_use():
    code = IMPORT + "print('imported'); attention(x, x, x)"
    result = run(code, SECATEURS_CPU_ISA="sse9")
    assert result.returncode
    assert result.stdout.strip() == "imported"
    assert "BackendError: SECATEURS_CPU_ISA: expected an instruction set this CPU" in result.stderr
    assert 'got "sse9"' in result.stderr


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx", ""])
def test_unknown_instruction_set_names_those_there_are(name):
    if not name:
        with cpu.use_isa(name):  # no name: the best
            assert cpu.isa() == cpu.isas()[0]
        return
    with (
        pytest.raises(BackendError, match=rf"runs \({', '.join(cpu.isas())}; built: .*got"),
        cpu.use_isa(name),
    ):
        pass


def test_built_but_unsupported_instruction_set_is_refused():
    missing = set(build_info()["cpu"]["isas"]) - set(cpu.isas())
    if not missing:
        pytest.skip("this CPU runs every instruction set that was built")
    for name in missing:
        with pytest.raises(BackendError, match=name), cpu.use_isa(name):
            pass


FACTS = """
import json, os, threading
import torch
from secateurs.ops import attention
from secateurs import _C_cpu

q = torch.randn(2, 4, 200, 32)
facts = {"default": [], "started": []}

def tasks():
    return len(os.listdir("/proc/self/task"))

def call():
    attention(q, q, q)
    facts["python thread"] = tasks() - before

start = tasks()
for n in (1, 2, 4):
    torch.set_num_threads(n)
    facts["default"].append(_C_cpu.default_threads())
    attention(q, q, q)
    facts["started"].append(tasks() - start)
torch.randn(500, 500).softmax(-1)
facts["torch"] = tasks() - start
before = tasks()
thread = threading.Thread(target=call)
thread.start()
thread.join()
maps = {line.split()[-1] for line in open("/proc/self/maps")}
facts["runtimes"] = [m for m in maps if any(n in m for n in ("libgomp", "libiomp", "libomp"))]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """How a fresh process uses threads."""
    if not Path("/proc/self/task").exists():
        pytest.skip("reads /proc")
    result = run(FACTS)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_torch_sets_the_threads_of_our_parallel_regions(facts):
    """A region that asks for no number gets the setting of the runtime it shares with torch."""
    assert facts["default"] == [1, 2, 4]


def test_kernels_run_on_as_many_threads_as_torch_says(facts):
    """And torch then finds its own threads running."""
    assert facts["started"] == [0, 1, 3]
    assert facts["torch"] == 3


def test_python_threads_follow_torch_too(facts):
    """A new Python thread's own OpenMP setting is every core; ours follows torch: itself and three
    helpers."""
    assert facts["python thread"] == 4


def test_one_openmp_runtime_in_the_process(facts):
    assert len(facts["runtimes"]) == 1


FEWER = """
import torch
from secateurs.ops import attention, use_backend

torch.set_num_threads(4)
q = torch.randn(2, 4, 200, 32)
ours = attention(q, q, q)
with use_backend("reference"):
    assert (attention(q, q, q) - ours).abs().max() < 1e-5
"""


def test_a_team_smaller_than_asked_for_does_all_the_work():
    result = run(FEWER, OMP_THREAD_LIMIT="2")
    assert result.returncode == 0, result.stderr


def test_the_runtime_of_openmp_is_that_of_torch(monkeypatch, tmp_path):
    """Of all that a process has loaded, and for everybody: on ARM torch keeps it to itself."""
    package = Path(torch.__file__).parent
    others = ["/opt/a b/sklearn.libs/libgomp-d22c30c5.so.1.0.0", "/usr/lib/libomp.so.5"]
    own = str(package.with_name("torch.libs") / "libgomp-a49a47f9.so.1.0.0")
    unrelated = [str(package / "lib" / "libtorch_cpu.so"), "[heap]", ""]
    maps, shared = tmp_path / "maps", []
    monkeypatch.setattr(openmp, "MAPS", maps)
    monkeypatch.setattr(openmp.ctypes, "CDLL", lambda path, mode: shared.append((path, mode)))
    for loaded, wanted in (([*others, own], [own]), (others, others), ([], [])):
        places = [f"7f00-7f01 r-xp 00000000 fd:00 4711     {file}" for file in unrelated + loaded]
        maps.write_text("\n".join(places + places))
        shared.clear()
        assert openmp.load("secateurs._C_cpu").isas()
        assert shared == [(file, ctypes.RTLD_GLOBAL) for file in wanted]
    maps.unlink()
    assert openmp.runtimes() == []


@pytest.mark.skipif(sys.platform != "linux", reason="our modules use OpenMP on Linux")
def test_the_runtime_that_is_shared_is_loaded():
    assert len(openmp.runtimes()) == 1
