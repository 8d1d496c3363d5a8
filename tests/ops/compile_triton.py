"""Compile the Triton kernels for an architecture that need not be present: run by
test_triton_compile.py, in a process of its own.

The operations' own launch code runs, on tensors of the CPU; where it would launch, the kernel is
compiled instead, specialised on the arguments of that launch. Prints one JSON line per kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from secateurs.formats import BlockSparseWeight, VectorWeight
from secateurs.ops._core import gpu
from secateurs.ops._core.tuning import Config, trial
from secateurs.ops.attention import triton as attention
from secateurs.ops.attention.operands import Operands as AttentionOperands
from secateurs.ops.block_sparse_linear import triton as block_sparse_linear
from secateurs.ops.block_sparse_linear.operands import Operands as BlockSparseOperands
from secateurs.ops.pattern_linear import triton as pattern_linear
from secateurs.ops.pattern_linear.operands import Operands as PatternOperands
from secateurs.plan.attention_rules import Local, layout

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
ENGINE = "cp.async.bulk.tensor"  # copies what a tensor descriptor describes


class Absent:
    """A driver without a device: enough for the compiler."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead(found: list) -> None:
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **meta):
        found.append((self.fn.__name__, launch(self, *args, grid=grid, warmup=True, **meta)))

    JITFunction.run = run


def linear_calls(op: str) -> Iterator[tuple[str, torch.dtype, int, object]]:
    """Every row of the table of a linear, by a call that takes it; and long rows that are split."""
    long = BlockSparseWeight.pack(torch.ones(32, 8192), block=(32, 32))
    if op == "block_sparse_linear":
        packed = (long.values, long.indptr, long.indices, 32)
        x = torch.zeros(8, 8192)
        operands = BlockSparseOperands(x, *packed, None, "none", None, None)
        call = (block_sparse_linear.run, operands)
        yield f"{op} split", torch.float32, 8, call
    for size in (16, 32, 64, 128):
        dtypes = (torch.bfloat16, torch.float32, *((torch.float16,) if size == 64 else ()))
        for dtype in dtypes:
            many = op == "block_sparse_linear" and dtype != torch.float32
            for rows in (2048, 512, 8) if many else (512, 8):
                x = torch.zeros(rows, 1024, dtype=dtype)
                bias, residual = (
                    torch.zeros(1024, dtype=dtype),
                    torch.zeros(rows, 1024, dtype=dtype),
                )
                dense = torch.zeros(1024, 1024, dtype=dtype)
                epilogue = (bias, "gelu", None, residual)
                if op == "block_sparse_linear":
                    w = BlockSparseWeight.pack(
                        dense, torch.eye(1024 // size) > 0, (size, size)
                    ).unpaired()
                    packed = (w.values, w.indptr, w.indices, 1024)
                    operands = BlockSparseOperands(x, *packed, *epilogue)
                    call = (block_sparse_linear.run, operands)
                else:
                    w = VectorWeight.pack(
                        dense, (torch.arange(1024) % 2 == 0).expand(1024, -1), size, 1
                    )
                    operands = PatternOperands(x, w.values, w.columns, None, *epilogue)
                    call = (pattern_linear.run, operands)
                yield f"{op} {size}", dtype, rows, call


def described(capability: int) -> Iterator[tuple[str, torch.dtype, int, object]]:
    """The block-sparse rows of the table for 16-bit numbers, with operands by descriptors, and
    where a GPU can, with warps that do nothing but copy."""
    variants = {
        80: {},
        90: {"descriptors": {"descriptors": True}},
        100: {
            "descriptors": {"descriptors": True},
            "specialised": {"descriptors": True, "specialised": True},
        },
    }
    table = block_sparse_linear.TABLE
    for name, dtype, rows, (run, operands) in linear_calls("block_sparse_linear"):
        if dtype != torch.bfloat16:
            continue
        config = table.choose(operands.x.device, block_sparse_linear.key(operands))
        for variant, changes in variants[capability].items():
            tried = partial(under, replace(config, **changes), run)
            yield f"{name} {variant}", dtype, rows, (tried, operands)


def under(config: Config, run: Callable[..., object], operands: object) -> None:
    with trial(config):
        run(operands)


def attention_calls() -> Iterator[tuple[str, torch.dtype, int, object]]:
    """Every row of the table of attention, causal with padding; then decoding, and patterns."""
    padding = torch.ones(1, 512, dtype=torch.bool)
    nothing = (None,) * 4

    def call(d, dtype, tq=512, causal=True, key_mask=padding, pattern=nothing):
        q, k = torch.zeros(1, 2, tq, d, dtype=dtype), torch.zeros(1, 2, 512, d, dtype=dtype)
        hidden = (None, key_mask, None, causal)
        return (attention.run, AttentionOperands(q, k, k, *hidden, 1.0, *pattern))

    for d in (16, 32, 64, 128, 256):
        for dtype in (torch.bfloat16, torch.float32):
            yield f"attention {d}", dtype, 512, call(d, dtype)
            if dtype == torch.float32 and d != 64:
                continue
            blocks = layout(Local(100), 512, 512, block=64)
            tensors = (blocks.indptr, blocks.indices, blocks.partial, blocks.masks)
            yield (
                f"attention {d} blocks of 64", dtype, 512,
                call(d, dtype, causal=False, key_mask=None, pattern=tensors),
            )  # fmt: skip
    yield "attention 80", torch.bfloat16, 512, call(80, torch.bfloat16)
    yield "attention 64 dense", torch.float16, 512, call(64, torch.float16, 512, False, None)
    yield "attention 128 decoding", torch.bfloat16, 1, call(128, torch.bfloat16, 1)


def resources(kernel) -> dict[str, int]:
    """What the assembler says a kernel uses: registers, bytes of stack (spills), local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}


def main(capability: int) -> None:
    driver.set_active(Absent(capability))
    gpu.architecture = lambda device: capability
    found: list[SimpleNamespace] = []
    compile_instead(found)
    calls = [
        *linear_calls("block_sparse_linear"),
        *linear_calls("pattern_linear"),
        *attention_calls(),
        *described(capability),
    ]
    calls += [(f"{n} tf32", d, r, c) for n, d, r, c in calls if n == "block_sparse_linear 64"
              and d == torch.float32 and r == 512]  # fmt: skip
    for name, dtype, rows, (run, operands) in calls:
        torch.set_float32_matmul_precision("high" if name.endswith("tf32") else "highest")
        run(operands)
        for kernel_name, kernel in found:
            row = {
                "call": f"{name} {str(dtype).removeprefix('torch.')} rows={rows}",
                "kernel": kernel_name,
                "matrix": [i for i in INSTRUCTIONS if i in kernel.asm["ptx"]],
                "engine": ENGINE in kernel.asm["ptx"],
                "specialised": "setmaxnreg" in kernel.asm["ptx"],  # roles share registers unevenly
                "shared": kernel.metadata.shared,
                **resources(kernel),
            }
            print(json.dumps(row), flush=True)
        found.clear()


if __name__ == "__main__":
    main(int(sys.argv[1]))
