"""Every pruning method on real tasks: what it keeps of the metric, and what its model then costs.

    python benchmarks/methods.py --data-dir DIR --tasks sst2,cola,stsb,qnli --json methods.jsonl

One model is fine-tuned for each task and seed; every method starts from it, at the same budgets and
epochs. A row holds the metric of the dense model, of the plan before any recovery (as it is, and
re-fitted where the method does not train), and of the recovered and the converted model, over the
whole validation split; what is kept by three denominators, the time of a training step over that of
plain fine-tuning, and the latency of the converted model, alternating with the dense one. Rows that
the file already holds are not run again, and an interrupted run goes on from its last checkpoint;
checkpoints of complete runs are removed, fine-tuned models stay.

The rows of results/methods.jsonl are smaller than the defaults, 225 steps a method: one to three
minutes of one core each.

    --precision bf16 --threads 1 --train-examples 4000 --validation-examples 1500 --dense-epochs 2
    --prune-epochs 0.6 --recover-epochs 0.3 --min-time 0.5
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

# Not the folder of this file: transformers would take kernels.py for the package of that name. The
# process of a peer reads this file too, and begins with our path.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.dense import (
    Dense,
    Rows,
    add_arguments,
    calibration,
    fine_tuned,
    listed,
    prepare,
    settings_of,
    steps_of,
    task_data,
    where,
)
from benchmarks.dense_peers import PEERS, dense_peers, times_beside
from torch import nn

import secateurs as sc
from secateurs.cli.arguments import shape
from secateurs.measurement.inputs import token_inputs, tokens_of_an_input
from secateurs.measurement.quality import backend_of
from secateurs.measurement.rows import row
from secateurs.measurement.timing import measure
from secateurs.plan import SparsityPlan
from secateurs.training.task_recipe import Outcome, prune_on_task
from secateurs.training.trainer import Distillation

HEADS = ("random", "magnitude", "gradient", "smp", "voita", "dsp")
PATTERNS = ("random", "magnitude", "layerwise_admm", "admm_pattern")
WEIGHTS = ("random", "magnitude", "seven_pre", "gradual_magnitude", "seven", "platon", "dcil")
BOTH = ("random", "magnitude", "gradient", "mlpruning", "sensi_bert")
VARIED = ("imitates", "from_refit")  # options of all runs of a call, which their rows name
Run = tuple[str, str, dict[str, Any]]
RUNS: tuple[Run, ...] = (
    *((method, f"heads={f}", {}) for f in (0.5, 0.75, 0.9) for method in HEADS),
    *((method, "modules=0.5", {}) for method in ("random", "magnitude", "snip_identity")),
    ("snip_identity", "modules=0.5", {"spectral": False}),
    ("snip_identity", "modules=0.5", {"estimator": "rel"}),
    ("snip_identity", "modules=0.5", {"estimator": "taylor"}),
    ("snip_identity", "modules=0.5", {"modules_in": "parameters"}),
    ("snip_identity", "modules=0.5", {"modules_in": "parameters", "estimator": "taylor"}),
    ("snip_identity", "modules=0.5", {"modules_in": "parameters", "spectral": False}),
    *(
        (method, f"patterns={f}{kind}", {})
        for f in (0.5, 0.75)
        for kind in ("", ",pattern=library")
        for method in PATTERNS
    ),
    *(("admm_pattern", "patterns=0.5,pattern=library", {"bits": bits}) for bits in (8, 4)),
    *((method, f"weights={f}", {}) for f in (0.5, 0.7, 0.8, 0.9) for method in WEIGHTS),
    *((method, "heads=0.5,neurons=0.5", {}) for method in BOTH),
    ("sensi_bert", "heads=0.5,neurons=0.5", {"order": "magnitude"}),
    ("sensi_bert", "heads=0.5,neurons=0.5", {"allocator": "per_layer"}),
    *((method, "blocks=0.8", {}) for method in ("random", "magnitude", "mlpruning")),
    ("mlpruning", "heads=0.5,neurons=0.5,blocks=0.8", {}),
)
BATCH, TOKENS = 8, 32  # that latencies are measured at; of an image as many as there are


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows = Rows(options.json, "task", "seed", "method", "budget", "options", *VARIED)
    for name in options.tasks:
        data = task_data(name, options)
        for seed in range(options.seeds):
            dense = fine_tuned(data, options, seed)
            for run in RUNS:
                method, budget, chosen = run
                record = {"task": name, "seed": seed, "method": method, "budget": budget}
                record["options"] = chosen
                record |= {name: True for name in VARIED if getattr(options, name)}
                if not _wanted(run, options) or record in rows:
                    continue
                named = (method, budget, *(f"{k}={v}" for k, v in chosen.items()))
                checkpoints = dense.work / "-".join(named)
                before: dict[str, float] = {}
                found = one(run, dense, checkpoints, seed, options, before)
                record |= before | report(found, dense, options)
                rows.add(record)
                shutil.rmtree(checkpoints, ignore_errors=True)  # half a gigabyte of checkpoints
                _print(record)
    return 0


def one(
    run: Run,
    dense: Dense,
    checkpoints: Path,
    seed: int,
    options: Any,
    before: dict[str, float],
) -> Outcome:
    """Prune and recover; what the plan scores before it recovers goes to `before`."""
    method, budget, chosen = run
    if method == "smp":
        chosen = {**chosen, "pair": dense.data.task.pair}

    def judge(model: nn.Module, plan: SparsityPlan) -> None:
        score = dense.score(sc.apply(model, plan))
        if options.from_refit and not _trains(method):
            before["refitted"] = score
            return
        before["unrecovered"] = score
        if options.refit and not _trains(method):  # a training leaves no dense model to fit to
            batches = calibration(dense, options.refit, options.batch_size, seed)
            fitted = sc.refit(copy.deepcopy(model), plan, batches, progress=False)
            before["refitted"] = dense.score(sc.apply(fitted, plan))

    settings = settings_of(options, seed)
    if options.imitates:
        settings = replace(settings, distillation=Distillation())
    return prune_on_task(
        copy.deepcopy(dense.model),
        dense.data,
        method,
        budget,
        checkpoints,
        settings,
        prune_epochs=options.prune_epochs,
        recover_epochs=options.recover_epochs,
        examples=options.examples,
        progress=False,
        options=chosen,
        refits=options.from_refit,
        before_recovery=judge,
    )


def report(found: Outcome, dense: Dense, options: Any) -> dict[str, Any]:
    sites, plan, data = sc.find_sites(dense.model), found.plan, dense.data
    fixed = tokens_of_an_input(dense.model)
    mean_length = fixed or round(mean(len(example["input_ids"]) for example in data.validation))
    kept = sites.density(plan, mean_length)
    linears = sum(n * k for shape in sites.layers for n, k in shape.linears().values())
    total = sum(p.numel() for p in dense.model.parameters())
    fast = sc.convert(found.model, plan)
    timed_at = (BATCH, fixed or TOKENS)
    inputs = token_inputs(dense.model, timed_at)
    timing = measure(fast, inputs, dense.model, min_time=options.min_time, compare=False)
    steps = steps_of(data, options.prune_epochs, options)
    trains = _trains(plan.notes["method"])
    latency = row(
        timing,
        model=where(options)["model"],
        backend=backend_of(fast),
        dtype=dense.model.dtype,
        shape=timed_at,
        density=kept["parameters"],
        baseline="dense",
        variant="converted",
    )
    beside = {}
    if options.peers:
        beside["beside"] = [times_in(p, found, dense, options) for p in (None, "int8")]
    return {
        "metric": dense.metric,
        "dense": dense.metrics[dense.metric],
        "pruned": found.metrics[dense.metric],
        "converted": dense.score(fast),
        "kept": {
            "layers' linears": kept["parameters"],
            "whole model": 1 - (1 - kept["parameters"]) * linears / total,
            f"macs at {mean_length} tokens": kept["macs"],
        },
        "seconds": found.seconds,
        "step_over_plain": found.seconds["prune"] / steps / dense.per_step if trains else None,
        "examples": [len(data.train), len(data.validation)],
        "epochs": [options.dense_epochs, options.prune_epochs, options.recover_epochs],
        "lr": options.lr,
        "precision": options.precision,
        "latency": latency,
        **beside,
    }


def times_in(precision: str | None, found: Outcome, dense: Dense, options: Any) -> dict[str, Any]:
    """What the model scores with linears in a precision, and its time beside dense peers in it."""
    tokens = math.prod(options.shape)
    fast = sc.convert(found.model, found.plan, tokens=tokens, precision=precision)
    with dense_peers(dense, options.peers, options.shape, precision) as peers:
        times = times_beside(fast, dense, peers, options.shape, options.min_time)
    named = {"precision": precision, "shape": list(options.shape), "score": dense.score(fast)}
    return {**named, **where(options), **times}


def _trains(method: str) -> bool:
    return sc.Needs.TRAINING in sc.METHODS[method].needs


def _wanted(run: Run, options: Any) -> bool:
    method, budget, _ = run
    return method in (options.methods or [method]) and budget in (options.budgets or [budget])


def _print(record: Mapping[str, Any]) -> None:
    kept = list(record["kept"].values())
    step = record["step_over_plain"]
    print(
        f"  {record['method']:<18}{record['budget']:<14}{record['options'] or ''!s:<16}"
        f"{record['metric']} "
        + (f"{record['unrecovered']:.4f} without recovery, " if "unrecovered" in record else "")
        + (f"{record['refitted']:.4f} re-fitted, " if "refitted" in record else "")
        + f"{record['pruned']:.4f} recovered (dense {record['dense']:.4f})  kept "
        f"{kept[0]:.2f} {kept[1]:.2f} {kept[2]:.2f}  speedup {record['latency']['speedup']:.2f}  "
        f"{sum(record['seconds'].values()):.0f} s"
        + (f", a step {step:.2f} of a plain one" if step else ""),
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(
        parser,
        tasks=["sst2", "cola", "stsb", "qnli"],
        train_examples=8000,
        dense_epochs=3.0,
        json="methods.jsonl",
    )
    parser.add_argument("--methods", type=listed, default=[], help="default: all")
    parser.add_argument("--budgets", nargs="+", default=[], help="default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=512, help="that one-shot methods read")
    parser.add_argument("--refit", type=int, default=0, help="examples to re-fit by, if any")
    parser.add_argument(
        "--imitate", action="store_true", dest="imitates", help="learn from the dense model, too"
    )
    parser.add_argument(
        "--from-refit", action="store_true", help="recover from re-fitted weights, where any are"
    )
    parser.add_argument("--prune-epochs", type=float, default=1)
    parser.add_argument("--recover-epochs", type=float, default=0.5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=(), help="to time beside")
    parser.add_argument(
        "--shape", type=shape, default=(8, 128), metavar="BxT", help="that peers are timed at"
    )
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds of timing a row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
