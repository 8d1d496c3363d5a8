"""Tasks on the command line: their names, and what reads their data for a model."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.calibration import image_processor_of, tokenizer_of


def add_task(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the task, and where its data is."""
    parser.add_argument(
        "--task",
        required=required,
        metavar="NAME",
        help="a task of GLUE (cola, sst2, stsb, qnli, ...), upos[:TREEBANK] for parts of speech, "
        "or images[:NAME]" + ("" if required else "; judge by its score"),
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="the task's JSON lines, or its folders or tars of images (default: fetched by the "
        "package datasets)",
    )


def reads_text(task: Any) -> bool:
    """Whether a task's examples are token ids."""
    return bool(task.main_input == "input_ids")


def processor_of(options: argparse.Namespace, model: Any, task: Any) -> Any:
    """The tokenizer in `options.model` made fit for its model, or the image processor. Raises
    DataError if the folder has none, or one whose images do not fit."""
    if reads_text(task):
        return tokenizer_of(options, model)
    return image_processor_of(options.model, model)


def judged_by_task(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model in `options.model`, which has a head for the task, and the task's data read for it.

    Raises DataError for a model without such a head.
    """
    from secateurs.data.tasks import find_task
    from secateurs.errors import DataError
    from secateurs.storage.model_folders import (
        check_head_is_used,
        has_classifier,
        open_classifier,
    )
    from secateurs.training.task_recipe import TaskData

    task = find_task(options.task, options.data_dir)
    if not has_classifier(options.model, task.head):
        raise DataError(
            f"expected a model with a head for {task.name} in {options.model}, got one without: "
            "`secateurs prune-task` trains one"
        )
    check_head_is_used(options.model, task.head)
    model = open_classifier(options.model, task.labels, head=task.head)
    processor = processor_of(options, model, task)
    return model, TaskData.read(task, processor, options.data_dir, options.max_length)
