"""The machine code of the CUDA module, read without a GPU: tensor cores, asynchronous and wide
copies where they are expected, nothing in local memory."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from secateurs.ops._backends import cuda

# Of each kernel: what its machine code must hold. LDGSTS is cp.async, LDSM ldmatrix.
PIPELINE = ("LDGSTS.E.BYPASS.128", "LDSM.16")
EXPECTED = {
    "stacked_linear": (*PIPELINE, "LDSM.16.MT88.4", "HMMA.16816.F32", "LDG.E.128", "STG.E.128"),
    "finish_pieces": ("LDG.E.128", "STG.E.128"),
    "turn_rows": ("LDG.E.128", "STG.E.128"),
    "sparse_product": (*PIPELINE, "HMMA.SP.16832.F32", "LDG.E.128", "STG.E.128"),
    "finish_parts": ("LDG.E.128", "STG.E.128"),
    "library_product": (*PIPELINE, "HMMA.16816.F32", "LDG.E.128", "STG.E.128"),
    "add_norm_row": ("LDG.E.128", "STG.E.128", "LDS.128"),
    "attention_forward": (*PIPELINE, "LDSM.16.MT88.4", "HMMA.16816.F32", "STG.E.128"),
    "join_parts": ("LDG.E.128", "STG.E.128"),
}
# HMMA carries no mark for half precision, and this one for bfloat16.
BFLOAT = re.compile(r"HMMA\.(SP\.)?\d+\.F32\.BF16")


def cuobjdump() -> str | None:
    """The disassembler that Triton brings."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


pytestmark = [
    pytest.mark.skipif(cuda.kernels() is None, reason="built without CUDA"),
    pytest.mark.skipif(cuobjdump() is None, reason="needs the cuobjdump of Triton's package"),
]


def dump(option: str) -> list[str]:
    command = [str(cuobjdump()), option, cuda.kernels().__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def code():
    """The mnemonics of every kernel: `{(architecture, mangled name): {mnemonic, ...}}`."""
    found, arch, into = defaultdict(set), "", set()
    for line in dump("-sass"):
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\w+)", line):
            into = found[arch, match[1]]
        elif match := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", line):
            into.add(match[1])
    return found


def kernel_of(name: str) -> str:
    (kernel,) = (known for known in EXPECTED if known in name.replace("StackedLauncher", ""))
    return kernel


def test_cuda_kernels_use_what_they_are_written_for(code):
    assert {kernel_of(name) for _, name in code} == set(EXPECTED)
    for (arch, name), mnemonics in code.items():
        for wanted in EXPECTED[kernel_of(name)]:
            held = any(mnemonic.startswith(wanted) for mnemonic in mnemonics)
            assert held, f"no {wanted} in {name} for {arch}"
        products = {m for m in mnemonics if m.startswith("HMMA")}
        assert all(bool(BFLOAT.match(m)) == ("bfloat16" in name) for m in products), name


def test_cuda_kernels_keep_out_of_local_memory(code):
    for (arch, name), mnemonics in code.items():
        spilled = [m for m in mnemonics if m.startswith(("LDL", "STL"))]
        assert not spilled, f"{name} for {arch} has {spilled}"
    usage = [line for line in dump("-res-usage") if "REG:" in line]
    assert len(usage) >= len(code)  # finish_pieces is in two files
    assert [line for line in usage if "STACK:0 " not in line or "LOCAL:0 " not in line] == []
