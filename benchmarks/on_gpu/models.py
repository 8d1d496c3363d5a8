"""BERT-base converted, on the backends of choice, against torch.compile (max-autotune) of the dense
model; checked against the masked model."""

from __future__ import annotations

import torch
from benchmarks.on_gpu.bench import DEVICE, DTYPE, Bench, Rows, error_of
from transformers import BertConfig, BertModel

import secateurs as sc
from secateurs import ops
from secateurs.measurement.rows import row
from secateurs.measurement.timing import measure
from secateurs.plan import BlockMask

CALLS = ((32, 128), (8, 512))  # batch, length
BLOCK = (64, 64)


def models(bench: Bench) -> Rows:
    torch.manual_seed(0)
    dense = BertModel(BertConfig()).eval().to(DEVICE, DTYPE)
    masks = {}
    for site in sc.find_sites(dense):
        if site.kind == "linear":
            grid = (site.shape[0] // BLOCK[0], site.shape[1] // BLOCK[1])
            masks[site.name] = BlockMask(torch.rand(grid) < 0.5, BLOCK)
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
