"""What is left of a task's metric in bf16 and int8, nothing pruned and nothing trained further.

    python benchmarks/rounding.py --data-dir DIR --tasks sst2,qnli,stsb --json rounding.jsonl

One model is fine-tuned for each task, as by methods.py, whose work folder it may share. Rows, for
each task and way: `bf16` and `int8`, and `int8 with data`, for which some training examples decide
codes, biases and factors. A row holds the metric over the validation examples, the dense model's in
fp32, and the mean and least cosine of the two models' logits. Rows that the file holds are not made
again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from methods import fine_tuned, mini
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

import secateurs as sc
from secateurs.data.batches import unlabelled
from secateurs.data.tasks import find_task
from secateurs.measurement.environment import device_name, git_commit
from secateurs.measurement.quality import embeddings
from secateurs.measurement.rows import append_rows
from secateurs.ops import build_info
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.training.task_recipe import Settings, TaskData, evaluate

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
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known = _known(options.json)
    for name in options.tasks:
        wanted = [way for way in WAYS if (name, way) not in known]
        if not wanted:
            continue
        task, folder = find_task(name), mini()
        data = TaskData.read(
            task, open_tokenizer(folder), options.data_dir, options.max_length, 4000
        )
        settings = Settings(lr=1e-4, batch_size=16, precision="bf16")
        dense = open_classifier(folder, task.labels, settings.seed)
        fine_tuned(dense, data, 2, Path(options.work) / f"{name}-0/dense", settings)
        dense.eval()
        score = evaluate(dense, data)
        metric = next(iter(score))
        chosen = random.Random(0).sample(data.train, options.examples)
        batches = [unlabelled(batch, dense) for batch in data.batches(chosen, 16)]
        for way in wanted:
            fast = WAYS[way](dense, batches)
            cosines = agreement(dense, fast, data)
            record = {
                "task": name,
                "way": way,
                "metric": metric,
                "dense": score[metric],
                "score": evaluate(fast, data)[metric],
                "cosine": float(cosines.mean()),
                "cosine_least": float(cosines.min()),
                "unrounded": sum("not in int8" in row.reason for row in sc.explain(fast)),
                "judged": len(data.validation),
                "examples": options.examples if "data" in way else 0,
                "model": "mini",
                "device": device_name(torch.device("cpu")),
                "isa": build_info()["cpu"]["isa"],
                "torch": torch.__version__,
                "commit": git_commit(),
            }
            append_rows(options.json, [record])
            lost = 100 * (record["dense"] - record["score"])
            print(
                f"{name:<6}{way:<16}{metric} {record['dense']:.4f} -> {record['score']:.4f} "
                f"({lost:+.2f} points lost)  cosine {record['cosine']:.5f}",
                flush=True,
            )
    return 0


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


def _known(path: str) -> set[tuple[str, str]]:
    if not Path(path).is_file():
        return set()
    rows: list[dict[str, Any]] = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {(row["task"], row["way"]) for row in rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="a folder for each task; by default from the hub")
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["sst2"])
    parser.add_argument("--examples", type=int, default=300, help="of the data that decide")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", default="methods-work", help="folder of fine-tuned models")
    parser.add_argument("--json", default="rounding.jsonl", help="rows, and what is done already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
