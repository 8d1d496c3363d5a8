"""Six of our CUDA kernels, each run once where a profiler looks:

ncu --clock-control none --profile-from-start off python -m benchmarks.on_gpu.counters
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from benchmarks.on_gpu.bench import DEVICE, DTYPE, SHAPES
from benchmarks.on_gpu.linears import block_sparse
from torch import Tensor

from secateurs import ops
from secateurs.formats import VectorWeight
from secateurs.plan.weight_patterns import VectorNM

LAYER = "4096 cubed"
MANY = 4096  # rows, or tokens


def calls() -> dict[str, Callable[[], Tensor]]:
    """Return the calls by what they are of."""

    def linear(layer: str, m: int, block: tuple[int, int]) -> Callable[[], Tensor]:
        k, n = SHAPES[layer]
        packed = block_sparse(n, k, block, 0.5)[1]
        x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
        return partial(ops.block_sparse_linear, x, packed)

    def two_four(m: int) -> Callable[[], Tensor]:
        k, n = SHAPES[LAYER]
        dense = torch.randn(n, k, device=DEVICE, dtype=DTYPE)
        packed = VectorWeight.pack(dense, VectorNM(2, 4, 1).keep(dense), 1)
        return partial(ops.pattern_linear, torch.randn(m, k, device=DEVICE, dtype=DTYPE), packed)

    def attention(heads: int, dim: int) -> Callable[[], Tensor]:
        q, k, v = torch.randn(3, 8, heads, MANY, dim, device=DEVICE, dtype=DTYPE)
        return partial(ops.attention, q, k, v)

    return {
        "64x64 blocks": linear(LAYER, MANY, (64, 64)),
        "128x32 blocks": linear(LAYER, MANY, (128, 32)),
        "one row": linear("llama-3-8b up", 1, (64, 64)),
        "2:4": two_four(MANY),
        "attention, 64": attention(12, 64),
        "attention, 128": attention(12, 128),
    }


def main() -> None:
    with ops.use_backend("cuda"), torch.inference_mode():
        prepared = calls()
        for call in prepared.values():
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for name, call in prepared.items():
            print(f"{name}:", flush=True)
            call()
            torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
