"""Images with a class each, from folders or tars of `CLASS/NAME`.

A folder holds the parts `train*` and `validation*` (or `val*`, `dev*`, `heldout*`, `test*`):
folders of folders named after the classes, or tars (`.tar`, `.tar.gz`, `.tgz`) of such.
`images:NAME` is what lies in the folder of that name; without a folder, a data set on the hub.
Images are kept as the files they are, and read and resized batch by batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateurs.checks import brief
from secateurs.data.base import Rows, Task
from secateurs.data.images import TARS, checked_image, files_in, pillow, pixel_values
from secateurs.data.metrics import accuracy
from secateurs.data.task_files import VALIDATION, from_hub, part_of, task_folder
from secateurs.errors import DataError

_COLUMNS = ("image", "img")  # what data sets on the hub call it


@dataclass(frozen=True)
class ImageTask(Task):
    """A class for each image."""

    classes: tuple[str, ...]
    source: str = ""

    head = "ImageClassification"
    main_input = "pixel_values"

    def read(self, split: str, directory: str | Path | None = None) -> Rows:
        """Rows with `image`, the bytes of a file, and `label`; those of all classes in turns, so
        that the first few are of each."""
        pillow()
        if directory is None:
            return _rows_from_hub(self.source, split)
        path = _part(directory, self.source, split)
        of_class: dict[str, list[bytes]] = defaultdict(list)
        for name, where, data in _images(path):
            if name not in self.classes:
                raise DataError(
                    f"expected classes out of {brief(', '.join(self.classes))} at {where}, got "
                    f"{name}"
                )
            of_class[name].append(checked_image(data, where))
        if not of_class:
            raise DataError(f"expected images as CLASS/NAME in {path}, got none")
        turns = [
            (place, self.classes.index(name), data)
            for name, images in of_class.items()
            for place, data in enumerate(images)
        ]
        turns.sort(key=lambda turn: turn[:2])
        return [{"image": data, "label": label} for _, label, data in turns]

    def encode(self, processor: Any, rows: Rows, max_length: int) -> Rows:
        # By the name of what the model takes, and read by `collate`: pixels would fill the memory.
        return [{"pixel_values": row["image"], "labels": row["label"]} for row in rows]

    def collate(self, processor: Any, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pixels = pixel_values(processor, [example["pixel_values"] for example in examples])
        return {
            "pixel_values": pixels,
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    def decides(self, processor: Any) -> str:
        return str(processor.to_json_string())


def image_task(source: str = "", directory: str | Path | None = None) -> ImageTask:
    """Images in a folder, or on the hub, with the classes that the training part has. Raises
    DataError where there are fewer than two."""
    name = f"images:{source}" if source else "images"
    if directory is not None:
        path = _part(directory, source, "train")
        classes = sorted({name for name, _, _ in _images(path, with_data=False)})
    elif source:
        classes, path = _names(_split_of_hub(source, "train")), Path(source)
    else:
        raise DataError("expected a folder with images, or a data set of the hub: images:NAME")
    if len(classes) < 2:
        raise DataError(f"expected images of two classes or more in {path}, got {len(classes)}")
    return ImageTask(name, len(classes), {"accuracy": accuracy}, tuple(classes), source)


def _part(directory: str | Path, source: str, split: str) -> Path:
    """The folder or the tar of a split."""
    folder = task_folder(directory, "images", source)
    starts = (*VALIDATION, "test") if split == "validation" else (split,)
    for start in starts:
        if folders := [path for path in folder.glob(f"{start}*") if path.is_dir()]:
            if len(folders) > 1:
                raise DataError(f"expected one folder {start}* in {folder}, got {len(folders)}")
            return folders[0]
        if any(folder.glob(f"{start}*{end}") for end in TARS):
            break
    return part_of(folder, split, TARS, "images, or a folder,", starts)


def _split_of_hub(source: str, split: str) -> Any:
    return from_hub(f"images:{source}", source, split=split)


def _names(rows: Any) -> list[str]:
    names = getattr(rows.features.get("label"), "names", None)
    if not names:
        raise DataError("expected a data set with classes as its column label, got none")
    return list(names)


def _rows_from_hub(source: str, split: str) -> Rows:
    """A split of a data set on the hub, its images as the files that it holds; of one without a
    validation part the test part."""
    parts = ("validation", "test") if split == "validation" else (split,)
    for part in parts:
        try:
            rows = _split_of_hub(source, part)
            break
        except DataError:
            if part == parts[-1]:
                raise
    column = next((name for name in _COLUMNS if name in rows.features), None)
    if column is None:
        raise DataError(f"expected a column {' or '.join(_COLUMNS)} in {source}, got none")
    images = rows.cast_column(column, type(rows.features[column])(decode=False))
    found = []
    for number, row in enumerate(images):
        where = f"images:{source} {split}:{number}"
        if not isinstance(row["label"], int) or row["label"] < 0:
            raise DataError(f"expected a class at {where}, got {brief(row['label'])}")
        found.append({"image": checked_image(row[column]["bytes"], where), "label": row["label"]})
    return found


def _images(path: Path, with_data: bool = True) -> Iterator[tuple[str, str, bytes]]:
    """The class, the place and the bytes of each image of a part, in order of their names within a
    folder; of a tar in its own. Raises DataError for any other file."""
    of_folder = path.is_dir()
    for file in files_in(path, None if with_data else ()):
        depth = len(file.parts)
        if depth < 2 or (of_folder and depth > 2):
            raise DataError(f"expected images as CLASS/NAME in {path}, got {file.where}")
        yield file.parts[-2], file.where, file.data
