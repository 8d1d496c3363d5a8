"""Tasks by their names."""

from __future__ import annotations

from pathlib import Path

from secateurs.data.base import Task
from secateurs.data.glue import TASKS
from secateurs.data.image_classification import image_task
from secateurs.data.token_classification import word_task
from secateurs.errors import DataError

NAMES = (*TASKS, "upos[:TREEBANK]", "images[:NAME]")


def find_task(name: str, directory: str | Path | None = None) -> Task:
    """The task of this name.

    Args:
        directory: as of `Task.read`: of images, which classes there are is read in it.

    Raises DataError for an unknown one.
    """
    kind, colon, part = name.partition(":")
    if name in TASKS:
        return TASKS[name]
    if part or not colon:
        if kind == "upos":
            return word_task(part)
        if kind == "images":
            return image_task(part, directory)
    raise DataError(f"expected a task in {', '.join(NAMES)}; got {name!r}")
