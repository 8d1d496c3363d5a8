"""Every launch configuration of the Triton kernels, compiled for GPUs that need not be here: the
tensor cores are used, no register spills, shared memory fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# Shared memory of a program. The row of 80 also serves 8.6, 8.9 and 12.x, which have the least.
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """What the compiler made of every configuration, by architecture; compiled side by side."""
    script = Path(__file__).with_name("compile_triton.py")
    home = tmp_path_factory.mktemp("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    runs = {}
    for arch in SHARED:
        runs[arch] = subprocess.Popen(
            [sys.executable, str(script), str(arch)],
            env={**environment, "TRITON_CACHE_DIR": str(home / str(arch))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    made = {}
    for arch, run in runs.items():
        out, errors = run.communicate()
        assert run.returncode == 0, errors[-3000:]
        made[arch] = [json.loads(line) for line in out.splitlines()]
    return made


@pytest.fixture(params=SHARED)
def arch(request):
    return request.param


def test_tensor_cores_do_the_products(kernels, arch):
    """wgmma and tcgen05 want 64 rows; float32 is exact unless tf32 is asked for."""
    seen = set()
    for kernel in kernels[arch]:
        call = kernel["call"]
        if kernel["kernel"] == "_finish" or ("float32" in call and "tf32" not in call):
            expected = []
        elif "rows=512" in call or "rows=2048" in call:
            expected = [TENSOR_CORES[arch]]
        else:
            expected = ["mma.sync"]
        assert kernel["matrix"] == expected, kernel
        seen.add((kernel["kernel"], *expected))
    assert {("_finish",), ("_product", "mma.sync"), ("_product", TENSOR_CORES[arch])} <= seen
    assert {("_attention", "mma.sync"), ("_attention", TENSOR_CORES[arch])} <= seen


def test_no_register_spills(kernels, arch):
    assert [k for k in kernels[arch] if k["STACK"] or k["LOCAL"]] == []


def test_shared_memory_fits(kernels, arch):
    assert [k for k in kernels[arch] if k["shared"] > SHARED[arch]] == []


def test_loops_are_pipelined(kernels, arch):
    """The operands of as many steps as the table says are in shared memory: where an index is not
    looked up ahead, or as Triton 3.6 does not see, there are fewer."""
    found = {kernel["call"]: kernel for kernel in kernels[arch]}
    steps = {"block_sparse_linear 16": (128 + 16) * 64, "block_sparse_linear 64": (128 + 64) * 64}
    if arch > 80:  # the others' first operand passes through registers there
        steps |= {"pattern_linear 64": (128 + 64) * 64, "attention 64 blocks of 64": 2 * 64 * 64}
    for name, elements in steps.items():
        stages = 3 if arch == 80 else 4
        assert found[f"{name} bfloat16 rows=512"]["shared"] >= stages * elements * 2, name


def test_descriptors_are_read_by_the_copy_engine(kernels, arch):
    """In the table's own rows for many rows of x, and in all that are tried with descriptors."""
    # 4 blocks, three numbers of rows, specialised or not; 64 in two dtypes and 128 by themselves.
    expected = {80: 0, 90: 12 + 3, 100: 24 + 3}[arch]
    assert sum(kernel["engine"] for kernel in kernels[arch]) == expected
    for kernel in kernels[arch]:
        operation, block, variant = kernel["call"].split()[:3]
        many = (operation, block) in (("block_sparse_linear", "64"), ("block_sparse_linear", "128"))
        own = arch > 80 and many and "rows=2048" in kernel["call"]
        described = variant in ("descriptors", "specialised")
        assert kernel["engine"] == (own or described), kernel
        assert kernel["specialised"] == (variant == "specialised"), kernel
