"""Masks of single weights chosen at once, without labels or training: what is left of the metric.

    python benchmarks/one_shot.py --data-dir DIR --tasks stsb --json one_shot.jsonl

One model is fine-tuned for each task, as by methods.py, whose work folder it may share. For each
budget the masks are those of magnitude, of |w| |x| on the dense model (Wanda: Sun et al. 2023,
arXiv 2306.11695), and of layerwise_admm; each is judged on the weights as they were and on those
that the re-fit gives. Masks and re-fit read the same examples. A row holds the metric over the
validation examples and the seconds that each part took. Rows that the file holds are not run again.

The rows of results/one_shot.jsonl:

    --tasks stsb --train-examples 4000 --validation-examples 600 --dense-epochs 2 --threads 1
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from methods import fine_tuned, mini
from torch import nn
from transformers.utils import logging

import secateurs as sc
from secateurs.data.batches import unlabelled
from secateurs.data.glue import find_task
from secateurs.measurement.environment import device_name, git_commit
from secateurs.measurement.timing import append_rows
from secateurs.pruning.allocation import PerLayer
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import Settings, TaskData, evaluate

BUDGETS = (
    "patterns=0.5",
    "patterns=0.5,pattern=library",
    "patterns=0.75",
    "patterns=0.75,pattern=library",
    "patterns=0.5,pattern=2:4",
    "weights=0.7",
)
MASKS = ("magnitude", "wanda", "layerwise_admm")
Batches = list[dict[str, torch.Tensor]]


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
        settings = Settings(lr=options.lr, batch_size=options.batch_size)
        dense = open_classifier(folder, task.labels, settings.seed)
        fine_tuned(
            dense, data, options.dense_epochs, Path(options.work) / f"{name}-0/dense", settings
        )
        dense.eval()
        metrics = evaluate(dense, data)
        metric = next(iter(metrics))
        print(f"{name}: dense {metric} {metrics[metric]:.4f}", flush=True)
        batches = calibration(dense, data, options.examples, options.batch_size)
        for budget in options.budgets:
            for mask in MASKS:
                key = {"task": name, "budget": budget, "mask": mask}
                if _key(key) in known:
                    continue
                start = time.perf_counter()
                plan = planned(dense, batches, budget, mask)
                chosen = time.perf_counter()
                fitted = sc.refit(dense, plan, batches, progress=False)
                done = time.perf_counter()
                record = {
                    **key,
                    "metric": metric,
                    "dense": metrics[metric],
                    "as_it_was": evaluate(sc.apply(dense, plan), data)[metric],
                    "fitted": evaluate(sc.apply(fitted, plan), data)[metric],
                    "kept": sc.find_sites(dense).density(plan)["parameters"],
                    "seconds": {"mask": chosen - start, "fit": done - chosen},
                    "examples": [len(data.train), options.examples, len(data.validation)],
                    "epochs": options.dense_epochs,
                    "lr": options.lr,
                    "model": options.model,
                    "device": device_name(torch.device("cpu")),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "commit": git_commit(),
                }
                append_rows(options.json, [record])
                _print(record)
    return 0


def calibration(model: nn.Module, data: TaskData, count: int, size: int) -> Batches:
    """Some training examples from anywhere, without their labels."""
    chosen = random.Random(0).sample(data.train, count)
    return [unlabelled(batch, model) for batch in data.batches(chosen, size)]


def planned(model: nn.Module, batches: Batches, budget: str, mask: str) -> sc.SparsityPlan:
    if mask == "wanda":
        scores, sites = wanda(model, batches), sc.find_sites(model)
        return PerLayer().allocate(scores, sites, sc.Budget.parse(budget))
    chosen: dict[str, Any] = {"allocator": "per_layer"} if mask == "magnitude" else {}
    return sc.prune(model, batches, method=mask, budget=budget, progress=False, **chosen)


@torch.no_grad()
def wanda(model: nn.Module, batches: Batches) -> dict[str, torch.Tensor]:
    """(|w| |x|)^2 of each weight, |x| the norm of its input over the tokens of the dense model."""
    sites, squares = sc.find_sites(model), {}
    views = {
        site.name: sites.linear(model, site.layer, site.name.rpartition(".")[2])
        for site in sites.of_kind("linear")
    }
    real: list[torch.Tensor] = []

    def read(name: str, x: torch.Tensor) -> None:
        squares[name] = squares.get(name, 0) + x[real[-1]].double().square().sum(0)

    hooks = [
        view.module.register_forward_pre_hook(lambda _, args, name=name: read(name, args[0]))
        for name, view in views.items()
    ]
    for batch in batches:
        real.append(batch["attention_mask"].bool())
        model(**batch)
    for hook in hooks:
        hook.remove()
    return {name: views[name].weight.double().square() * x for name, x in squares.items()}


def _known(path: str) -> set[str]:
    if not Path(path).is_file():
        return set()
    return {_key(json.loads(line)) for line in Path(path).read_text().splitlines()}


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps({name: record[name] for name in ("task", "budget", "mask")})


def _print(record: Mapping[str, Any]) -> None:
    seconds = record["seconds"]
    print(
        f"  {record['budget']:<30}{record['mask']:<16}as it was {record['as_it_was']:.4f}  fitted "
        f"{record['fitted']:.4f}  {seconds['mask']:.0f} + {seconds['fit']:.0f} s",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="a folder for each task; by default from the hub")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["stsb"])
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="default: six")
    parser.add_argument("--model", default="mini", help="mini, or a model folder")
    parser.add_argument("--train-examples", type=int, default=4000)
    parser.add_argument("--validation-examples", type=int)
    parser.add_argument("--examples", type=int, default=256, help="that masks and re-fit read")
    parser.add_argument("--dense-epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", default="methods-work", help="folder of fine-tuned models")
    parser.add_argument("--json", default="one_shot.jsonl", help="rows, and what is done already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
