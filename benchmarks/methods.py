"""Every pruning method on real tasks: what it keeps of the metric, and what its model then costs.

    python benchmarks/methods.py --data-dir DIR --tasks sst2,cola,stsb,qnli --json methods.jsonl

One model is fine-tuned for each task and seed; every method starts from it, at the same budgets and
epochs. A row holds the metric of the dense, the pruned and the converted model over the whole
validation split, what is kept by four denominators, the time of a training step over that of plain
fine-tuning, and the latency of the converted model, alternating with the dense one. Rows that the
file already holds are not run again, and an interrupted run goes on from its last checkpoint;
checkpoints of complete runs are removed, fine-tuned models stay.

The rows of results/methods.jsonl are smaller than the defaults, 225 steps a method: one to three
minutes of one core each.

    --precision bf16 --threads 1 --train-examples 4000 --validation-examples 1500 --dense-epochs 2
    --prune-epochs 0.6 --recover-epochs 0.3 --min-time 0.5
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

import secateurs as sc
from secateurs.data.glue import find_task
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.quality import backend_of
from secateurs.measurement.timing import append_rows, measure, row
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import (
    Outcome,
    Settings,
    TaskData,
    evaluate,
    prune_on_task,
    train,
)

HEADS = ("random", "magnitude", "gradient", "smp", "voita", "dsp")
PATTERNS = ("random", "magnitude", "admm_pattern")
WEIGHTS = ("random", "magnitude", "seven_pre", "seven")
Run = tuple[str, str, dict[str, Any]]
RUNS: tuple[Run, ...] = (
    *((method, f"heads={f}", {}) for f in (0.5, 0.75) for method in HEADS),
    *((method, "modules=0.5", {}) for method in ("random", "magnitude", "snip_identity")),
    ("snip_identity", "modules=0.5", {"spectral": 0}),
    ("snip_identity", "modules=0.5", {"estimator": "rel"}),
    *(
        (method, f"patterns=0.5{kind}", {})
        for kind in ("", ",pattern=library")
        for method in PATTERNS
    ),
    *((method, f"weights={f}", {}) for f in (0.5, 0.7, 0.9) for method in WEIGHTS),
)
LATENCY_SHAPE = (8, 32)


def mini() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    from secateurs.cli.demo import model_folder

    return Path(model_folder())


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known = _known(options.json)
    for name in options.tasks:
        task = find_task(name)
        folder = mini() if options.model == "mini" else Path(options.model)
        data = TaskData.read(
            task,
            open_tokenizer(folder),
            options.data_dir,
            options.max_length,
            options.train_examples,
            options.validation_examples,
        )
        for seed in range(options.seeds):
            settings = Settings(
                lr=options.lr,
                batch_size=options.batch_size,
                seed=seed,
                precision=options.precision,
            )
            work = Path(options.work) / f"{name}-{seed}"
            dense = open_classifier(folder, task.labels, seed)
            per_step = fine_tuned(dense, data, options.dense_epochs, work / "dense", settings)
            metrics = evaluate(dense, data)
            print(f"{name}, seed {seed}: dense {_shown(metrics)}", flush=True)
            for run in RUNS:
                key = {"task": name, "seed": seed, "method": run[0], "budget": run[1]}
                key["options"] = run[2]
                if _wanted(run, options) and _key(key) not in known:
                    named = (*run[:2], *(f"{k}={v}" for k, v in run[2].items()))
                    checkpoints = work / "-".join(named)
                    found = one(run, dense, data, checkpoints, settings, options)
                    record = {**key, **report(found, dense, data, metrics, per_step, options)}
                    append_rows(options.json, [record])
                    shutil.rmtree(checkpoints, ignore_errors=True)  # half a gigabyte of checkpoints
                    _print(record)
    return 0


def fine_tuned(
    model: nn.Module, data: TaskData, epochs: float, work: Path, settings: Settings
) -> float:
    """Fine-tune `model`, or read how that ended before; seconds a step took."""
    done, state = work / "seconds.json", work / "model.safetensors"
    if not done.is_file():
        seconds = train(model, data, epochs, work, settings, progress=False)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, state)
        done.write_text(json.dumps(seconds / _steps(data, epochs, settings)))
    model.load_state_dict(load_file(state))
    return float(json.loads(done.read_text()))


def one(
    run: Run, dense: nn.Module, data: TaskData, checkpoints: Path, settings: Settings, options: Any
) -> Outcome:
    method, budget, chosen = run
    if method == "smp":
        chosen = {**chosen, "pair": int(data.task.pair)}
    model = type(dense)(dense.config)
    model.load_state_dict(dense.state_dict())
    return prune_on_task(
        model,
        data,
        method,
        budget,
        checkpoints,
        settings,
        prune_epochs=options.prune_epochs,
        recover_epochs=options.recover_epochs,
        examples=options.examples,
        progress=False,
        options=chosen,
    )


def report(
    found: Outcome,
    dense: nn.Module,
    data: TaskData,
    metrics: Mapping[str, float],
    per_step: float,
    options: Any,
) -> dict[str, Any]:
    sites, plan = sc.find_sites(dense), found.plan
    lengths = [len(example["input_ids"]) for example in data.validation]
    mean_length = round(sum(lengths) / len(lengths))
    kept = sites.density(plan, mean_length)
    linears = sum(n * k for shape in sites.layers for n, k in shape.linears().values())
    total = sum(p.numel() for p in dense.parameters())
    fast = sc.convert(found.model, plan)
    inputs = token_inputs(dense, LATENCY_SHAPE)
    timing = measure(fast, inputs, dense.eval(), min_time=options.min_time, compare=False)
    steps = _steps(data, options.prune_epochs, Settings(batch_size=options.batch_size))
    trains = sc.METHODS[plan.notes["method"]].needs & sc.Needs.TRAINING
    name = next(iter(metrics))
    latency = row(
        timing,
        model=options.model,
        backend=backend_of(fast),
        dtype=dense.dtype,
        shape=LATENCY_SHAPE,
        density=kept["parameters"],
        baseline="dense",
        variant="converted",
    )
    return {
        "metric": name,
        "dense": metrics[name],
        "pruned": found.metrics[name],
        "converted": evaluate(fast, data)[name],
        "kept": {
            "layers' linears": kept["parameters"],
            "whole model": 1 - (1 - kept["parameters"]) * linears / total,
            f"macs at {mean_length} tokens": kept["macs"],
        },
        "seconds": found.seconds,
        "step_over_plain": found.seconds["prune"] / steps / per_step if trains else None,
        "examples": [len(data.train), len(data.validation)],
        "epochs": [options.dense_epochs, options.prune_epochs, options.recover_epochs],
        "lr": options.lr,
        "precision": options.precision,
        "latency": latency,
    }


def _steps(data: TaskData, epochs: float, settings: Settings) -> int:
    return max(1, round(epochs * -(-len(data.train) // settings.batch_size)))


def _wanted(run: Run, options: Any) -> bool:
    method, budget, _ = run
    return method in (options.methods or [method]) and budget in (options.budgets or [budget])


def _known(path: str) -> set[str]:
    if not Path(path).is_file():
        return set()
    return {_key(json.loads(line)) for line in Path(path).read_text().splitlines()}


def _key(record: Mapping[str, Any]) -> str:
    names = ("task", "seed", "method", "budget", "options")
    return json.dumps({name: record[name] for name in names}, sort_keys=True)


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _print(record: Mapping[str, Any]) -> None:
    kept = list(record["kept"].values())
    step = record["step_over_plain"]
    print(
        f"  {record['method']:<14}{record['budget']:<14}{record['options'] or ''!s:<16}"
        f"{record['metric']} {record['pruned']:.4f} (dense {record['dense']:.4f})  kept "
        f"{kept[0]:.2f} {kept[1]:.2f} {kept[2]:.2f}  speedup {record['latency']['speedup']:.2f}  "
        f"{sum(record['seconds'].values()):.0f} s"
        + (f", a step {step:.2f} of a plain one" if step else ""),
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    listed = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--data-dir", help="a folder for each task; by default from the hub")
    parser.add_argument("--tasks", type=listed, default=["sst2", "cola", "stsb", "qnli"])
    parser.add_argument("--methods", type=listed, default=[], help="default: all")
    parser.add_argument("--budgets", type=listed, default=[], help="default: all")
    parser.add_argument("--model", default="mini", help="mini, or a model folder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--train-examples", type=int, default=8000)
    parser.add_argument("--validation-examples", type=int)
    parser.add_argument("--examples", type=int, default=512, help="that one-shot methods read")
    parser.add_argument("--dense-epochs", type=float, default=3)
    parser.add_argument("--prune-epochs", type=float, default=1)
    parser.add_argument("--recover-epochs", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds of timing a row")
    parser.add_argument("--work", default="methods-work", help="folder of checkpoints")
    parser.add_argument("--json", default="methods.jsonl", help="rows, and what is done already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
