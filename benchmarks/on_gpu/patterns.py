"""Weight patterns against F.linear, 2:4 also against cuSPARSELt; norms against torch.compile."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

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
    worst_of,
)
from torch import Tensor
from torch.nn import functional as F
from torch.sparse import to_sparse_semi_structured

from secateurs import ops
from secateurs.formats import LibraryWeight, VectorWeight
from secateurs.plan.weight_patterns import Library, VectorNM

ROWS = (4096, 16, 1, 512)
NORMS = {"bert-base": (768, False), "bert-large": (1024, False), "llama-3-8b": (4096, True)}


def patterns(bench: Bench) -> Rows:
    for name, (k, n) in SHAPES.items():
        dense = torch.randn(n, k, device=DEVICE, dtype=DTYPE) / k**0.5
        fours, vectors = VectorNM(2, 4, 1).keep(dense), VectorNM(2, 4, 64).keep(dense)
        library = Library.select(dense.float(), (4, 4), 4)
        codes, blocks = library.codes(dense.float()), library.project(dense.float()).to(DTYPE)
        # With the bytes that say where a number stands: an eighth on top, next to none of vectors.
        packed: dict[str, tuple[Any, Tensor, float]] = {
            "2:4": (VectorWeight.pack(dense, fours, 1), dense * fours, 9 / 8),
            "vector 64": (VectorWeight.pack(dense, vectors, 64), dense * vectors, 1),
            "library 4x4": (LibraryWeight.pack(blocks, codes, library.patterns), blocks, 9 / 8),
        }
        for m in ROWS:
            x = torch.randn(m, k, device=DEVICE, dtype=DTYPE)
            for label, (weight, sparse, more) in packed.items():
                if label.startswith("library") and m > FEW:
                    continue
                count = copies_of(weight.values.nbytes) if m <= FEW else 1
                ours = [replace(weight, values=weight.values.clone()) for _ in range(count)]
                same = [sparse.clone() for _ in range(count)]
                peers = {"F.linear": [partial(F.linear, x, w) for w in same]}
                if label == "2:4" and (compressed := semi_structured(same)):
                    peers["cuSPARSELt"] = [partial(F.linear, x, w) for w in compressed]
                yield from bench.rows(
                    [partial(ops.pattern_linear, x, w) for w in ours],
                    peers,
                    against_linear(x, sparse),
                    nbytes=weight.values.nbytes * more,
                    operations=2 * m * weight.values.numel(),
                    op="pattern_linear",
                    shape=(m, k, n),
                    density=weight.density,
                    pattern=label,
                    layer=name,
                )


def semi_structured(weights: list[Tensor]) -> list[Tensor]:
    """2:4 weights as torch packs them; none, and told, where it does not."""
    try:
        return [to_sparse_semi_structured(weight) for weight in weights]
    except Exception as reason:
        print(f"cuSPARSELt at {tuple(weights[0].shape)}: {reason}", file=sys.stderr)
        return []


def norms(bench: Bench) -> Rows:
    def layer(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return total, F.layer_norm(total, w.shape, w, None, 1e-5)

    def rms(x: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + r
        return total, F.rms_norm(total, w.shape, w, 1e-5)

    for name, (d, is_rms) in NORMS.items():
        formula = rms if is_rms else layer
        compiled = torch.compile(formula, fullgraph=True, dynamic=False)
        for m in (4096, 512, 16384):
            x, r = torch.randn(2, m, d, device=DEVICE, dtype=DTYPE)
            w = torch.randn(d, device=DEVICE, dtype=DTYPE)
            yield from bench.rows(
                [partial(ops.sum_and_norm, x, r, w, rms=is_rms)],
                {
                    "torch.compile": [partial(compiled, x, r, w)],
                    "torch": [partial(formula, x, r, w)],
                },
                partial(worst_of, formula(x.double(), r.double(), w.double())),
                nbytes=4 * x.nbytes,
                op="add_norm",
                shape=(m, d),
                pattern="RMSNorm" if is_rms else "LayerNorm",
                layer=name,
            )
