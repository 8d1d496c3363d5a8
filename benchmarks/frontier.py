"""Pruned to a time without training: what is left of the metric, and whether the time is met.

    python benchmarks/frontier.py --data-dir DIR --tasks sst2,qnli,stsb --json frontier.jsonl

One model is fine-tuned for each task, as by methods.py, whose work folder it may share. The times
asked for are those that the model takes with a half, and a quarter, of the heads and neurons of
each layer. Rows, for each task, time and seed of the calibration data:

    gradient       heads and neurons of lowest gradient go, in equal shares; re-fitted
    mask tuning    what `compress` chooses, one scale fitted for each unit that stays (after Kwon et
                   al. 2022, arXiv 2204.09656)
    quick, normal, long   `compress`, by its efforts

A row holds the metric over the validation examples, the time asked for, predicted and measured in
turns with the model as transformers runs it, and the seconds of the search. Rows that the file
holds are not run again.
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
from torch import Tensor, nn
from transformers.utils import logging

import secateurs as sc
from secateurs.architectures.sites import find_sites
from secateurs.data.batches import check_batches, evaluating, unlabelled
from secateurs.data.glue import find_task
from secateurs.measurement.environment import device_name, git_commit
from secateurs.measurement.timing import append_rows
from secateurs.ops import build_info
from secateurs.reconstruction.walk import Walk
from secateurs.search import Search
from secateurs.search.sizes import Size
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import Settings, TaskData, evaluate

KEPT = {"half": 0.5, "quarter": 0.25}
VARIANTS = ("gradient", "mask tuning", "quick", "normal", "long")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known = _known(options.json)
    for name in options.tasks:
        task, folder = find_task(name), mini()
        data = TaskData.read(
            task,
            open_tokenizer(folder),
            options.data_dir,
            options.max_length,
            options.train_examples,
            options.validation_examples,
        )
        settings = Settings(lr=1e-4, batch_size=16, precision="bf16")
        dense = open_classifier(folder, task.labels, settings.seed)
        fine_tuned(dense, data, 2, Path(options.work) / f"{name}-0/dense", settings)
        dense.eval()
        metrics = evaluate(dense, data)
        metric = next(iter(metrics))
        print(f"{name}: dense {metric} {metrics[metric]:.4f}", flush=True)
        for seed in range(options.seeds):
            wanted = [
                (kept, variant)
                for kept in KEPT
                for variant in options.variants
                if _key({"task": name, "kept": kept, "variant": variant, "seed": seed}) not in known
            ]
            if not wanted:
                continue
            batches = calibration(dense, data, options.examples, seed)
            search = Search(
                dense, batches, shapes=[options.shape], seed=seed, force=True, progress=False
            )
            for kept, variant in wanted:
                record = {
                    "task": name,
                    "kept": kept,
                    "variant": variant,
                    "seed": seed,
                    "metric": metric,
                    "dense": metrics[metric],
                    **one(dense, data, batches, search, KEPT[kept], variant, metric),
                    "shape": list(options.shape),
                    "examples": options.examples,
                    "model": "mini",
                    "dtype": "float32",
                    "device": device_name(torch.device("cpu")),
                    "isa": build_info()["cpu"]["isa"],
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "commit": git_commit(),
                }
                append_rows(options.json, [record])
                _print(record)
    return 0


def one(
    dense: nn.Module,
    data: TaskData,
    batches: list[dict[str, Tensor]],
    search: Search,
    share: float,
    variant: str,
    metric: str,
) -> dict[str, Any]:
    """The figures of one variant at the time of a model that keeps `share` of each layer."""
    start = time.perf_counter()
    asked = search.table.predict(
        [Size(round(s.heads * share), round(s.neurons * share)) for s in find_sites(dense).layers]
    )
    if variant == "gradient":
        gone = 1 - share
        plan = sc.prune(dense, batches, budget=f"heads={gone},neurons={gone}", progress=False)
        fitted = sc.refit(dense, plan, batches, progress=False)
        times = search.timed(plan)
        return {
            "score": evaluate(sc.apply(fitted, plan), data)[metric],
            "asked_ms": asked,
            "predicted_ms": None,
            "ms": times.ms,
            "spread_ms": times.spread,
            "stock_ms": times.stock,
            "seconds": time.perf_counter() - start,
        }
    effort = "quick" if variant == "mask tuning" else variant
    found = search.meet(sc.Budget(latency=asked), effort)
    recovered = found.recovered
    if variant == "mask tuning":
        recovered = tuned(dense, found.plan, batches)
    return {
        "score": evaluate(sc.apply(recovered, found.plan), data)[metric],
        "asked_ms": asked,
        "predicted_ms": found.predicted,
        "ms": found.measured,
        "spread_ms": found.spread,
        "stock_ms": found.stock,
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def tuned(dense: nn.Module, plan: sc.SparsityPlan, batches: list[dict[str, Tensor]]) -> nn.Module:
    """A copy of `dense` in which each unit that stays has a scale, by least squares towards the
    dense model's residual stream, layer by layer."""
    sites, pruned = find_sites(dense), sc.apply(dense, plan).eval()
    walk = Walk(sites, dense, pruned)
    with evaluating(dense), torch.no_grad():
        runs = [walk.start(batch) for batch in check_batches(batches)]
        for index in range(len(sites.layers)):
            keep = sites.keep(plan, index)
            for group in walk.groups(index):
                units = (
                    keep.heads if group.sublayer is sites.architecture.attention else keep.neurons
                )
                if not group.is_last or not bool(units.any()):
                    continue
                (view,) = walk.views(group)
                columns = keep.sides(group.linears[0].role)[1]
                sums = walk.equations(group, columns)
                for run in runs:
                    walk.add(sums, group, columns, run)
                weight = view.weight[:, columns].double()
                width, count = len(columns) // len(units), int(units.sum())
                products = sums.gram * (weight.T @ weight)
                system = products.view(count, width, count, width).sum((1, 3))
                wanted = (sums.product * weight.T).view(count, width, -1).sum((1, 2))
                damping = 0.01 * system.diagonal().mean() * torch.eye(count).double()
                scales = 1 + torch.linalg.solve(system + damping, wanted)
                view.weight[:, columns] = (weight * scales.repeat_interleave(width)).float()
            for run in runs:
                walk.advance(index, run)
    return pruned


def calibration(model: nn.Module, data: TaskData, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Some training examples from anywhere, without their labels."""
    chosen = random.Random(seed).sample(data.train, count)
    batches = [unlabelled(batch, model) for batch in data.batches(chosen, 32)]
    random.Random(seed).shuffle(batches)
    return batches


def _known(path: str) -> set[str]:
    if not Path(path).is_file():
        return set()
    return {_key(json.loads(line)) for line in Path(path).read_text().splitlines()}


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps({name: record[name] for name in ("task", "kept", "variant", "seed")})


def _print(record: Mapping[str, Any]) -> None:
    lost = 100 * (record["dense"] - record["score"])
    print(
        f"  {record['kept']:<8}{record['variant']:<12}seed {record['seed']}  {record['score']:.4f} "
        f"({lost:.1f} points lost)  asked {record['asked_ms']:.1f} ms, got {record['ms']:.1f} "
        f"(+- {record['spread_ms']:.1f})  {record['seconds']:.0f} s",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="a folder for each task; by default from the hub")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["stsb"])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration data")
    parser.add_argument("--examples", type=int, default=512, help="that the search reads")
    parser.add_argument(
        "--shape", type=lambda text: tuple(map(int, text.split("x"))), default=(8, 128)
    )
    parser.add_argument("--train-examples", type=int, default=4000)
    parser.add_argument("--validation-examples", type=int)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", default="methods-work", help="folder of fine-tuned models")
    parser.add_argument("--json", default="frontier.jsonl", help="rows, and what is done already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
