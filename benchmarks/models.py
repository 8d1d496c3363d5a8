"""Whole encoders, dense and converted, against the fastest dense peer found here.

    python benchmarks/models.py --device cpu --peers all --json models.jsonl

Densities below 1 remove random heads and neurons in equal shares: speed does not depend on which.
Every row is timed alternately with eager torch. The peers are such rows too, so the speedups of one
shape may be compared; those that are not installed say so and are left out.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name.
sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.peak import Peak, measure_peak
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils import logging

import secateurs as sc
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.quality import backend_of
from secateurs.measurement.timing import append_rows, measure, row

COMPILED = "torch.compile + freezing"
RUNTIMES = ("openvino", "onnxruntime")  # modules of benchmarks.peers
PEERS = {"compile": COMPILED, **{name: name for name in RUNTIMES}}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DENSITIES = (1.0, 0.5, 0.25)
SHAPES = {  # batch x tokens
    "minilm": ((1, 32), (1, 128), (8, 128), (32, 128), (4, 512)),
    "bert-base": ((1, 128), (8, 128), (8, 512)),
}
# bf16: layers add up their roundings, on either side.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def minilm() -> nn.Module:
    from secateurs.cli.demo import model_folder

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


def peers(dense: nn.Module, inputs: Mapping[str, Tensor], names: list[str]) -> Iterator[Variant]:
    """Other dense runtimes, fixed to one shape."""
    if "compile" in names:
        from torch._inductor import config

        config.freezing = True
        torch._dynamo.reset()
        yield COMPILED, 1.0, torch.compile(dense), dense
    for name in RUNTIMES:
        if name not in names:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of exporters, about our installation
                run = importlib.import_module(f"benchmarks.peers.{name}").build(dense, inputs)
        except (ImportError, NotImplementedError) as error:
            print(f"  {name}: left out, {error}")
            continue
        yield name, 1.0, run, dense


def work(dense: nn.Module, shape: tuple[int, int], kept: float) -> float:
    """Floating-point operations of the layers: two for each kept weight and token, and those of the
    scores, which go with the heads."""
    sites, (batch, tokens) = sc.find_sites(dense), shape
    weights = sum(
        sites.linear(dense, i, role).weight.numel()
        for i, layer in enumerate(sites.layers)
        for role in layer.linears()
    )
    scores = sum(4.0 * tokens * layer.heads * layer.head_dim for layer in sites.layers)
    return batch * tokens * kept * (2.0 * weights + scores)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = list(PEERS) if "all" in options.peers else options.peers
    peak = measure_peak(torch.get_num_threads())
    records = []
    for name, dtype in itertools.product(options.models, map(DTYPES.get, options.dtypes)):
        dense = MODELS[name]().to(options.device, dtype)
        ours = list(converted(dense, options.densities))
        for shape in options.shapes or SHAPES[name]:
            print(f"{name} {dtype} {shape[0]}x{shape[1]}, {torch.get_num_threads()} threads")
            inputs = token_inputs(dense, shape)
            for variant in [*ours, *peers(dense, inputs, names)]:
                records.append(run(name, shape, dense, inputs, variant, options.min_time, peak))
                if options.json:
                    append_rows(options.json, records[-1:])
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
    peak: Peak | None,
) -> dict[str, Any]:
    """Time one variant against eager torch, print its line, and return its row."""
    label, density, model, truth = variant
    agreement = measure(
        lambda **x: model(**x)[0] if label not in RUNTIMES else model(**x),
        inputs,
        lambda **x: truth(**x)[0],
        warmup=1,
        min_repeats=1,
        min_time=0,
    )
    settle = (
        0.02 if label in RUNTIMES else 0.0
    )  # their threads and torch's spin in each other's way
    result = measure(model, inputs, dense, min_time=min_time, settle=settle, compare=False)
    ours = isinstance(model, nn.Module) and label.startswith("converted")
    share = None
    if peak is not None and dense.device.type == "cpu":
        operations = work(dense, shape, float(label.split()[-1]) if ours else 1.0)
        share = operations / result.timing.ms / 1e6 / peak.of(dense.dtype)
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
        tolerance=TOLERANCE[dense.dtype],
        variant=label,
        fma_share=share,
    )
    print(
        f"  {label:<26}{record['ms']:>9.2f} ms  eager {record['baseline_ms']:>9.2f} ms  "
        f"speedup {result.speedup:>5.2f} ({result.speedup_p20:.2f} to {result.speedup_p80:.2f})  "
        f"{'-' if share is None else f'{share:.0%}'} of peak  rel err {agreement.rel_err:.0e}",
        flush=True,
    )
    return record


def _parser() -> argparse.ArgumentParser:
    def shape(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("x"))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="BxT")
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--peers", nargs="*", choices=[*PEERS, "all"], default=["openvino", "onnxruntime"]
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--min-time", type=float, default=2.0, help="seconds of sampling a row")
    parser.add_argument("--json", help="append a JSON line for each row to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
