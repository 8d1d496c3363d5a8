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
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.dense import (
    Dense,
    Rows,
    add_arguments,
    calibration,
    fine_tuned,
    prepare,
    task_data,
    where,
)
from torch import nn

import secateurs as sc
from secateurs.pruning.allocation import PerLayer

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
    prepare(options)
    rows = Rows(options.json, "task", "budget", "mask")
    for name in options.tasks:
        dense = fine_tuned(task_data(name, options), options)
        batches = calibration(dense, options.examples, options.batch_size)
        for budget in options.budgets:
            for mask in MASKS:
                record = {"task": name, "budget": budget, "mask": mask}
                if record in rows:
                    continue
                record |= report(dense, batches, budget, mask, options)
                rows.add(record)
                _print(record)
    return 0


def report(
    dense: Dense, batches: Batches, budget: str, mask: str, options: argparse.Namespace
) -> dict[str, Any]:
    model, data = dense.model, dense.data
    start = time.perf_counter()
    plan = planned(model, batches, budget, mask)
    chosen = time.perf_counter()
    fitted = sc.refit(model, plan, batches, progress=False)
    done = time.perf_counter()
    return {
        "metric": dense.metric,
        "dense": dense.metrics[dense.metric],
        "as_it_was": dense.score(sc.apply(model, plan)),
        "fitted": dense.score(sc.apply(fitted, plan)),
        "kept": sc.find_sites(model).density(plan)["parameters"],
        "seconds": {"mask": chosen - start, "fit": done - chosen},
        "examples": [len(data.train), options.examples, len(data.validation)],
        "epochs": options.dense_epochs,
        "lr": options.lr,
        **where(options),
    }


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


def _print(record: Mapping[str, Any]) -> None:
    seconds = record["seconds"]
    print(
        f"  {record['budget']:<30}{record['mask']:<16}as it was {record['as_it_was']:.4f}  fitted "
        f"{record['fitted']:.4f}  {seconds['mask']:.0f} + {seconds['fit']:.0f} s",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, json="one_shot.jsonl")
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="default: six")
    parser.add_argument("--examples", type=int, default=256, help="that masks and re-fit read")
    return parser


if __name__ == "__main__":
    sys.exit(main())
