"""`secateurs meta-train`: the scorer of method `smp`."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.arguments import names, positive, seed
from secateurs.cli.terminal import OK, quiet

SUMMARY = "train the scorer of method smp on tasks, without their labels"
EXAMPLE = "secateurs meta-train --model bert --tasks mrpc,rte,cola --out scorer.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the tasks and how long the scorer learns."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a transformers model folder")
    parser.add_argument(
        "--tasks", required=True, type=names, help="GLUE tasks to learn from: mrpc,rte,cola,..."
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="for --method smp --option artifact=FILE"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="a folder for each task (default: fetched by the package datasets)",
    )
    parser.add_argument("--steps", type=positive, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--train-examples",
        type=positive,
        metavar="N",
        help="use only the first N training examples of each task (default: all)",
    )
    parser.add_argument("--batch-size", type=positive, default=60, help="default: %(default)s")
    parser.add_argument(
        "--max-length", type=positive, default=128, metavar="TOKENS", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of random numbers (default: 0)")


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Train the scorer and save it."""
    from secateurs.architectures.sites import find_sites
    from secateurs.cli.calibration import tokenizer_of
    from secateurs.cli.paths import new_file
    from secateurs.cli.tasks import reads_text
    from secateurs.data.tasks import find_task
    from secateurs.errors import DataError
    from secateurs.pruning.map_scorer import save_scorer
    from secateurs.pruning.methods.smp import meta_train
    from secateurs.storage.model_folders import open_model
    from secateurs.training.task_recipe import meta_task

    quiet()
    out = new_file(options.out)
    tasks = [find_task(name, options.data_dir) for name in options.tasks]
    if not all(map(reads_text, tasks)):
        raise DataError(f"expected tasks of text to learn from, got {', '.join(options.tasks)}")
    model = open_model(options.model)
    find_sites(model)
    tokenizer = tokenizer_of(options, model)
    inputs = [
        meta_task(
            task,
            tokenizer,
            options.data_dir,
            options.max_length,
            options.train_examples,
            options.batch_size,
            options.seed,
        )
        for task in tasks
    ]
    scorer = meta_train(
        model, inputs, steps=options.steps, seed=options.seed, progress=options.progress
    )
    save_scorer(scorer, out)
    print(f"saved to {out}")
    return OK, {"out": str(out), "tasks": options.tasks, "steps": options.steps}
