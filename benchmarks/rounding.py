"""What is left of a task's metric in bf16 and int8, nothing pruned and nothing trained further.

    python benchmarks/rounding.py --data-dir DIR --tasks sst2,qnli,stsb --json rounding.jsonl

One model is fine-tuned for each task, as by methods.py, whose work folder it may share. Rows, for
each task and way: `bf16` and `int8`, and `int8 with data`, for which some training examples decide
codes, biases and factors. A row holds the metric over the validation examples, the dense model's in
fp32, and the mean and least cosine of the two models' mean hidden states. Rows that the file holds
are not made again.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
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
from torch import Tensor, nn
from torch.nn import functional as F

import secateurs as sc
from secateurs.data.batches import unlabelled
from secateurs.measurement.quality import embeddings
from secateurs.training.task_recipe import TaskData

Batch = dict[str, Tensor]
WAYS: dict[str, Callable[[nn.Module, list[Batch]], nn.Module]] = {
    "bf16": lambda dense, _: sc.convert(_cast(dense), sc.SparsityPlan()),
    "int8": lambda dense, _: sc.convert(dense, sc.SparsityPlan(), precision="int8"),
    "int8 with data": lambda dense, batches: sc.convert(
        dense, sc.SparsityPlan(), precision="int8", batches=batches
    ),
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows = Rows(options.json, "task", "way")
    for name in options.tasks:
        wanted = [way for way in WAYS if {"task": name, "way": way} not in rows]
        if not wanted:
            continue
        dense = fine_tuned(task_data(name, options), options)
        batches = calibration(dense, options.examples, options.batch_size)
        for way in wanted:
            record = {"task": name, "way": way, **report(dense, batches, way), **where(options)}
            record["examples"] = options.examples if "data" in way else 0
            rows.add(record)
            lost = 100 * (record["dense"] - record["score"])
            print(
                f"{name:<6}{way:<16}{dense.metric} {record['dense']:.4f} -> {record['score']:.4f} "
                f"({lost:+.2f} points lost)  cosine {record['cosine']:.5f}",
                flush=True,
            )
    return 0


def report(dense: Dense, batches: list[Batch], way: str) -> dict[str, Any]:
    fast = WAYS[way](dense.model, batches)
    cosines = agreement(dense.model, fast, dense.data)
    return {
        "metric": dense.metric,
        "dense": dense.metrics[dense.metric],
        "score": dense.score(fast),
        "cosine": float(cosines.mean()),
        "cosine_least": float(cosines.min()),
        "unrounded": sum("not in int8" in row.reason for row in sc.explain(fast)),
        "judged": len(dense.data.validation),
    }


def agreement(dense: nn.Module, fast: nn.Module, data: TaskData) -> Tensor:
    """The cosine of each validation example's mean hidden state in the two models."""
    ours, theirs = (
        torch.cat(
            [
                embeddings(model.base_model, unlabelled(batch, model))
                for batch in data.batches(data.validation[:256], 32)
            ]
        )
        for model in (fast, dense)
    )
    return F.cosine_similarity(ours, theirs)


def _cast(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(torch.bfloat16)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, tasks=["sst2"], precision="bf16", json="rounding.jsonl")
    parser.add_argument("--examples", type=int, default=300, help="of the data that decide")
    return parser


if __name__ == "__main__":
    sys.exit(main())
