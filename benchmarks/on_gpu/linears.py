"""Block-sparse linears against F.linear (cuBLAS), and the others also against torch's BSR product;
checked against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from benchmarks.on_gpu.bench import (
    DEVICE,
    DTYPE,
    FEW,
    SHAPES,
    Bench,
    Rows,
    against_linear,
    copies_of,
)
from torch import Tensor
from torch.nn import functional as F

from secateurs import ops
from secateurs.formats import BlockSparseWeight
from secateurs.ops._core.tuning import Config, trial


class Problem(NamedTuple):
    """A product of `m` rows with a weight of `density`, in blocks of outputs by inputs."""

    layer: str
    m: int
    block: tuple[int, int]
    density: float
    dtype: torch.dtype = DTYPE


MANY = 4096  # rows of x
DECODED = ("llama-3-8b up", "llama-3-8b down", "llama-3-8b qkv", "bert-base up")
FIRST = ("4096 cubed", "bert-base up", "llama-3-8b up")
LAYERS = (*FIRST, *(layer for layer in SHAPES if layer not in FIRST))  # the order they go in
# One layer after the other, so that whoever runs out of time has whole ones.
LARGE = tuple(
    Problem(layer, MANY, block, density)
    for layer, block, density in product(
        LAYERS, ((64, 64), (128, 32), (128, 128)), (1.0, 0.5, 0.25)
    )
)
DECODE = tuple(
    Problem(layer, m, block, density)
    for layer, m, block, density in product(
        DECODED, (1, FEW), ((64, 64), (128, 32)), (0.5, 0.25, 1.0)
    )
)
OTHERS = (
    *(
        problem
        for density, layer, m in product((0.5, 0.25, 0.75, 0.1), LAYERS, (512, 16384, MANY, FEW))
        if (problem := Problem(layer, m, (64, 64), density)) not in {*LARGE, *DECODE}
    ),
    *(
        Problem(layer, m, (64, 64), 0.5, torch.float32)
        for layer, m in product(("bert-base up", "bert-base down"), (FEW, MANY))
    ),
)


def large(bench: Bench) -> Rows:
    return _rows(bench, LARGE)


def few(bench: Bench) -> Rows:
    return _rows(bench, DECODE)


def others(bench: Bench) -> Rows:
    return _rows(bench, OTHERS, on_torch_bsr=True)


def _rows(bench: Bench, problems: Iterable[Problem], on_torch_bsr: bool = False) -> Rows:
    for problem in problems:
        bench.in_time()
        yield from linear(bench, problem, on_torch_bsr)


def linear(bench: Bench, problem: Problem, on_torch_bsr: bool = False) -> Rows:
    """Yield the rows of a problem: for each way with the operands, and each peer of the first."""
    layer, m, block, density, dtype = problem
    k, n = SHAPES[layer]
    weight, packed = block_sparse(n, k, block, density, dtype)
    x = torch.randn(m, k, device=DEVICE, dtype=dtype)
    count = copies_of(packed.values.nbytes) if m <= FEW else 1
    ours = [replace(packed, values=packed.values.clone()) for _ in range(count)]
    cublas = {"F.linear": [partial(F.linear, x, weight.clone()) for _ in range(count)]}
    peers = cublas
    if on_torch_bsr and m % 16 == 0:  # what it takes
        bsr = weight.to_sparse_bsr(block)
        peers = cublas | {"torch BSR": [torch_bsr(x, bsr.clone()) for _ in range(count)]}
    for way, config in ways(bench.backend, x, packed):
        yield from bench.rows(
            [partial(launched, config, x, copy) for copy in ours],
            peers,
            against_linear(x, weight),
            nbytes=packed.values.nbytes,
            operations=2 * m * packed.values.numel(),
            dtype=dtype,
            op="block_sparse_linear",
            shape=(m, k, n),
            block=block,
            density=density,
            layer=layer,
            operands=way,
        )
        peers = cublas


def ways(
    backend: str, x: Tensor, weight: BlockSparseWeight
) -> Iterator[tuple[str | None, Config | None]]:
    """Yield the ways in which a backend may take the operands: Triton by addresses and, on Hopper
    and later, by tensor descriptors, with tiles of 256 rows where the blocks have 128 outputs."""
    if backend != "triton":
        yield None, None
        return
    from secateurs.ops.block_sparse_linear import arguments
    from secateurs.ops.block_sparse_linear import triton as kernels

    config = kernels.TABLE.choose(x.device, kernels.key(arguments(x, weight)))
    yield "addresses", replace(config, descriptors=False)
    if torch.cuda.get_device_capability()[0] < 9:
        return
    yield "descriptors", replace(config, descriptors=True)
    outputs, inputs = weight.block
    if outputs == 128 and len(x) > FEW and x.dtype == DTYPE:
        step, stages = (64, 4) if inputs >= 64 else (32, 6)
        yield "descriptors, 256 rows", Config(256, step, 8, stages, descriptors=True)


def launched(config: Config | None, x: Tensor, weight: BlockSparseWeight) -> Tensor:
    with nullcontext() if config is None else trial(config):
        return ops.block_sparse_linear(x, weight)


def block_sparse(
    n: int, k: int, block: tuple[int, int], density: float, dtype: torch.dtype = DTYPE
) -> tuple[Tensor, BlockSparseWeight]:
    """Return a random weight `[n, k]` with as many blocks in each row, dense and packed."""
    bn, bk = block
    keep = torch.rand(n // bn, k // bk, device=DEVICE).argsort(1).argsort(1)
    keep = keep < max(1, round(density * (k // bk)))
    weight = torch.randn(n, k, device=DEVICE, dtype=dtype) / k**0.5
    weight *= keep.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
    return weight, BlockSparseWeight.pack(weight, keep, block)


def torch_bsr(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """Return x W^T by torch's block-sparse product, which takes rows of x sixteen at a time."""
    from torch.sparse._triton_ops import bsr_dense_mm

    return partial(bsr_dense_mm, weight, x.T)
