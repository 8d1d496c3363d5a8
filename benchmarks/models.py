"""Whole encoders, dense and converted, against the fastest dense peer found here.

    python benchmarks/models.py --json models.jsonl

Densities below 1 remove random heads and neurons in equal shares: speed does not depend on which.
Every row is timed alternately with eager torch. The peers (torch.compile with --compile, OpenVINO
and ONNX Runtime where installed) are such rows too, so the speedups of one shape may be compared.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

import secateurs as sc
from secateurs.evaluation import backend_of, token_inputs
from secateurs.measure import append_rows, measure, row

PEERS = ("openvino", "onnxruntime")
DENSITIES = (1.0, 0.5, 0.25)
SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
TOLERANCE = 1e-4


def minilm() -> nn.Module:
    from secateurs.demo import model_folder

    return AutoModel.from_pretrained(model_folder()).eval()


def bert_base() -> nn.Module:
    """BERT-base with random weights: its speed is that of the trained one."""
    torch.manual_seed(0)
    return BertModel(BertConfig()).eval()


MODELS = {"minilm": minilm, "bert-base": bert_base}

Variant = tuple[str, float | None, Callable[..., Any], Callable[..., Any]]


def converted(dense: nn.Module, densities: list[float]) -> Iterator[Variant]:
    """(name, density, the converted model, the model it must agree with)."""
    for density in densities:
        plan = sc.SparsityPlan()
        if density < 1:
            budget = sc.Budget(heads=1 - density, neurons=1 - density)
            plan = sc.prune(dense, method="random", budget=budget)
        kept = sc.find_sites(dense).density(plan)["parameters"]
        yield f"converted {density:g}", kept, sc.convert(dense, plan), sc.apply(dense, plan)


def peers(dense: nn.Module, inputs: Mapping[str, Tensor], compiled: bool) -> Iterator[Variant]:
    """Other dense runtimes, fixed to one shape; those that are missing say so and are left out."""
    if compiled:
        from torch._inductor import config

        config.freezing = True
        torch._dynamo.reset()
        yield "torch.compile + freezing", 1.0, torch.compile(dense), dense
    for name in PEERS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of exporters, about our installation
                run = importlib.import_module(f"benchmarks.peers.{name}").build(dense, inputs)
        except ImportError as error:
            print(f"  {name}: left out, {error}")
            continue
        yield name, 1.0, run, dense


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    records = []
    for name in options.models:
        dense = MODELS[name]()
        ours = list(converted(dense, options.densities))
        for shape in options.shapes:
            print(f"{name} {shape[0]}x{shape[1]}, {torch.get_num_threads()} threads")
            inputs = token_inputs(dense, shape)
            for variant in [*ours, *peers(dense, inputs, options.compile)]:
                records.append(run(name, shape, dense, inputs, variant, options.min_time))
    if options.json:
        append_rows(options.json, records)
    wrong = [r for r in records if not r["ok"]]
    for record in wrong:
        print(f"WRONG: {record['model']} {record['variant']} {record['shape']}", file=sys.stderr)
    return 1 if wrong else 0


def run(
    name: str,
    shape: tuple[int, int],
    dense: nn.Module,
    inputs: Mapping[str, Tensor],
    variant: Variant,
    min_time: float,
) -> dict[str, Any]:
    """Time one variant against eager torch, print its line, and return its row."""
    label, density, model, truth = variant
    agreement = measure(
        lambda **x: model(**x)[0] if label not in PEERS else model(**x),
        inputs,
        lambda **x: truth(**x)[0],
        warmup=1,
        min_repeats=1,
        min_time=0,
    )
    settle = 0.02 if label in PEERS else 0.0  # their threads and torch's spin in each other's way
    result = measure(model, inputs, dense, min_time=min_time, settle=settle, compare=False)
    ours = isinstance(model, nn.Module) and label.startswith("converted")
    record = row(
        result,
        model=name,
        backend=backend_of(model) if ours else label,
        isa=sc.env_report()["kernels"]["cpu"]["isa"] if ours else None,
        dtype=dense.dtype,
        shape=shape,
        density=density,
        baseline="eager",
        rel_err=agreement.rel_err,
        tolerance=TOLERANCE,
        variant=label,
    )
    print(
        f"  {label:<26}{record['ms']:>9.2f} ms  eager {record['baseline_ms']:>9.2f} ms  "
        f"speedup {result.speedup:>5.2f} ({result.speedup_p20:.2f} to {result.speedup_p80:.2f})  "
        f"rel err {agreement.rel_err:.0e}",
        flush=True,
    )
    return record


def _parser() -> argparse.ArgumentParser:
    def shape(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("x"))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, metavar="BxT")
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--compile", action="store_true", help="also torch.compile with freezing")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--min-time", type=float, default=2.0, help="seconds of sampling a row")
    parser.add_argument("--json", help="append a JSON line for each row to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
