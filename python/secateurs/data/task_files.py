"""Where a task's examples lie: files in a folder, or a data set of the hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateurs.checks import first_line
from secateurs.errors import DataError

LINES = (".jsonl", ".jsonl.gz")
VALIDATION = ("validation", "val", "dev", "heldout")
"""What the name of a validation part may begin with."""

Row = dict[str, Any]


def task_folder(directory: str | Path, name: str, part: str = "") -> Path:
    """The folder of a task: `directory` itself, or what is named after the task in it; with a
    `part` the folder of that name there. Raises DataError where a part has none."""
    folder = Path(directory)
    folder = folder / name if (folder / name).is_dir() else folder
    if not part:
        return folder
    if not (folder / part).is_dir():
        known = sorted(path.name for path in folder.glob("*") if path.is_dir())
        raise DataError(
            f"expected a folder {part} with the data of {name}:{part} in {folder}, got "
            f"{', '.join(known) or 'no folders'}"
        )
    return folder / part


def part_of(
    folder: Path, split: str, ends: Sequence[str], task: str, starts: Sequence[str] = VALIDATION
) -> Path:
    """The one file with the examples of a split, which ends in one of `ends`; for a validation part
    the first of `starts` that any file begins with. Raises DataError for none, or several."""
    starts = starts if split == "validation" else (split,)
    for start in starts:
        if found := sorted(path for end in ends for path in folder.glob(f"{start}*{end}")):
            break
    if len(found) != 1:
        raise DataError(
            f"expected one file {starts[0]}*{' or '.join(ends)} of {task} in {folder}, got "
            f"{len(found)}"
        )
    return found[0]


def read_lines(path: Path, check: Callable[[Any, str], Row]) -> list[Row]:
    """The rows of a JSON-lines file, gzipped or not, as `check` gives them when it is told where
    they stand. Raises DataError for a file that holds none, or anything else."""
    rows = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(check(json.loads(line), f"{path}:{number}"))
    except DataError:
        raise
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"expected JSON lines in {path}, got {first_line(error)}") from error
    if not rows:
        raise DataError(f"expected at least one example in {path}, got none")
    return rows


def from_hub(task: str, path: str, *names: str, **options: Any) -> Any:
    """A split of a data set on the hub, by `datasets`. Raises DataError where it cannot be had."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"expected a folder with the files of {task}, or the package datasets to fetch it"
        ) from None
    try:
        return datasets.load_dataset(path, *names, **options)
    except Exception as error:  # of any of the layers between here and the hub
        raise DataError(f"cannot fetch {task} by datasets: {first_line(error)}") from error
