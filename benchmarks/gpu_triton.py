"""The Triton backend against its peers on a GPU: the rows that gpu.py --backend triton writes.

    PYTHONPATH=python python benchmarks/gpu_triton.py --part linears --json gpu.jsonl

Linears against F.linear (cuBLAS) and torch's BSR product, attention patterns against compiled
FlexAttention on the same mask and SDPA (flash), and BERT-base converted, on the backends of
choice, against torch.compile (max-autotune) of the dense model. Both sides run in CUDA graphs,
interleaved; every row is checked against float64 or the masked model.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from gpu_rows import (  # first: it takes this folder out of the path
    DENSITIES,
    DEVICE,
    DTYPE,
    FEW,
    ROWS,
    SHAPES,
    Bench,
    Rows,
    against_linear,
    block_sparse,
    copies_of,
    error_of,
    on_torch_bsr,
    run_part,
)

# isort: split
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import BertConfig, BertModel

import secateurs as sc
from secateurs import ops
from secateurs.formats import BlockSparseWeight
from secateurs.measurement.rows import row
from secateurs.measurement.timing import measure
from secateurs.ops._core.tuning import Config, trial
from secateurs.plan import BlockMask
from secateurs.plan.attention_rules import Local, Rule, Sinks, Strided, layout

PATTERNS: dict[str, Rule] = {
    "local 128": Local(128),
    "local 256 | sinks 4": Local(256) | Sinks(4),
    "strided 64 | local 64": Strided(64) | Local(64),
}
LENGTHS = (512, 1024, 2048, 4096)
CALLS = ((32, 128), (8, 512))  # batch, length


def linears(bench: Bench, block: int) -> Rows:
    for density in DENSITIES:
        for name in SHAPES:
            for m in ROWS:
                yield from linear(bench, name, m, density, block, DTYPE)
    for name in list(SHAPES)[:2]:
        for m in (FEW, 4096):
            yield from linear(bench, name, m, 0.5, block, torch.float32)


def linear(bench: Bench, name: str, m: int, density: float, block: int, dtype: torch.dtype) -> Rows:
    from secateurs.ops.block_sparse_linear import arguments
    from secateurs.ops.block_sparse_linear import triton as kernels

    bench.in_time()
    k, n = SHAPES[name]
    weight, packed = block_sparse(n, k, block, density, dtype)
    x = torch.randn(m, k, device=DEVICE, dtype=dtype)
    count = copies_of(packed.values.nbytes) if m <= FEW else 1
    ours = [replace(packed, values=packed.values.clone()) for _ in range(count)]
    cublas = {"F.linear": [partial(F.linear, x, weight.clone()) for _ in range(count)]}
    config = kernels.TABLE.choose(x.device, kernels.key(arguments(x, packed)))
    variants = {"addresses": (config, cublas)}
    if m % 16 == 0:  # what it takes
        bsr = weight.to_sparse_bsr((block, block))
        torch_bsr = {"torch BSR": [on_torch_bsr(x, bsr.clone()) for _ in range(count)]}
        variants = {"addresses": (config, cublas | torch_bsr)}
    if density == 0.5 and torch.cuda.get_device_capability()[0] >= 9:
        variants["tensor descriptors"] = (replace(config, descriptors=True), cublas)
    for operands, (how, peers) in variants.items():
        yield from bench.rows(
            [partial(launched, how, x, w) for w in ours],
            peers,
            against_linear(x, weight),
            nbytes=packed.values.nbytes,
            operations=2 * m * packed.values.numel(),
            dtype=dtype,
            op="block_sparse_linear",
            shape=(m, k, n),
            block=(block, block),
            density=density,
            layer=name,
            operands=operands,
        )


def launched(config: Config, x: Tensor, weight: BlockSparseWeight) -> Tensor:
    with trial(config):
        return ops.block_sparse_linear(x, weight)


def attentions(bench: Bench, block: int) -> Rows:
    flex = torch.compile(flex_attention, dynamic=False)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    for t in LENGTHS:
        q, k, v = torch.randn(3, 4, 16, t, 64, device=DEVICE, dtype=DTYPE)
        position = torch.arange(t, device=DEVICE)
        for name, rule in PATTERNS.items():
            bench.in_time()
            blocks = layout(rule, t, t, block=block, device=DEVICE)
            mask = create_block_mask(
                lambda b, h, i, j, rule=rule: rule.allows(i, j),
                None,
                None,
                t,
                t,
                device=DEVICE.type,
            )
            allowed = rule.allows(position[:, None], position)
            want = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), allowed)
            yield from bench.rows(
                [partial(ops.attention, q, k, v, pattern=blocks)],
                {
                    "SDPA flash, dense": [partial(flash, q, k, v)],
                    "FlexAttention, same mask": [partial(flex, q, k, v, block_mask=mask)],
                },
                partial(error_of, want=want.transpose(1, 2)),
                operations=4 * q.numel() * t * blocks.density,
                op="attention",
                shape=tuple(q.shape),
                block=(block, block),
                density=blocks.density,
                pattern=name,
            )


def models(bench: Bench, block: int) -> Rows:
    torch.manual_seed(0)
    dense = BertModel(BertConfig()).eval().to(DEVICE, DTYPE)
    masks = {}
    for site in sc.find_sites(dense):
        if site.kind == "linear":
            grid = (site.shape[0] // block, site.shape[1] // block)
            masks[site.name] = BlockMask(torch.rand(grid) < 0.5, (block, block))
    plans = {
        "blocks 0.5": sc.SparsityPlan(masks),
        "heads and neurons 0.5": sc.prune(
            dense, method="random", budget=sc.Budget(heads=0.5, neurons=0.5)
        ),
    }
    for batch, length in CALLS:
        bench.in_time()
        inputs = {"input_ids": torch.randint(1000, 20000, (batch, length), device=DEVICE)}
        torch._dynamo.reset()  # or the second shape would be compiled for any shape
        best = torch.compile(dense, mode="max-autotune", dynamic=False)
        for name, plan in plans.items():
            # Not every operation of a model has a kernel of the backend in question.
            with ops.use_backend("auto"):
                runner = sc.capture(sc.convert(dense, plan), inputs, lengths=(length,))
                truth = sc.apply(dense, plan)(**inputs)[0]
            error = error_of(runner(**inputs)[0], truth.double())
            yield row(
                measure(runner, inputs, best, compare=False, min_time=0.5),
                model=f"bert-base {name}",
                backend="auto",
                dtype=DTYPE,
                shape=(batch, length),
                baseline="torch.compile max-autotune, dense",
                rel_err=error,
                tolerance=5e-2,
                **bench.facts,
            )


if __name__ == "__main__":
    sys.exit(
        run_part(
            __doc__.split("\n")[0],
            "triton",
            {"linears": linears, "attentions": attentions, "models": models},
        )
    )
