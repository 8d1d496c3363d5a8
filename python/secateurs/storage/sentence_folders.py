"""Folders of sentence-transformers: a model at the top, and what else makes embeddings or scores of
its states. A folder with the pruned model keeps all of that as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateurs import __version__
from secateurs.errors import CheckpointError
from secateurs.files import written_whole
from secateurs.reading import (
    MOST_JSON,
    check_folder,
    is_plain_name,
    parse_json,
    read_bytes,
    read_json,
    shown,
)

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_TRANSFORMER = "sentence_*_config.json"  # with one type of model or another in the middle
_CLASSES = ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "MultiVectorEncoder")
_REASON = "The model is pruned, and runs on kernels of secateurs: import it before loading."


def is_sentence_folder(path: str | Path) -> bool:
    """Whether a model folder is one of sentence-transformers, of any kind of model they have."""
    return (Path(path) / _MODULES).exists()


def class_of_folder(path: str | Path) -> str | None:
    """The name of the class of sentence-transformers that opens a folder; None where none does.

    Raises CheckpointError for a folder that cannot be read.
    """
    if not is_sentence_folder(path):
        return None
    settings = Path(path) / _SETTINGS
    named = read_json(settings).get("model_type") if settings.exists() else None
    return named if named in _CLASSES else _CLASSES[0]


def wants_states(path: str | Path) -> bool:
    """Whether what stands behind the model of such a folder takes its states, and no head's."""
    settings = [read_json(file) for file in sorted(Path(path).glob(_TRANSFORMER))]
    tasks = {settings.get("transformer_task", "feature-extraction") for settings in settings}
    return tasks <= {"feature-extraction"}


def other_modules(path: str | Path) -> list[Path]:
    """The folders of the modules behind the model, those that there are.

    Raises CheckpointError where the model does not lie at the top, or a module outside.
    """
    file = Path(path) / _MODULES
    text = read_bytes(file, MOST_JSON).decode("utf-8", errors="replace")
    modules = parse_json(f'{{"modules": {text}}}', str(file))["modules"]
    if not (isinstance(modules, list) and modules and all(map(_is_module, modules))):
        raise CheckpointError(f"expected modules with a type and a path in {file}")
    first, *others = modules
    if first["path"] != "" or not first["type"].endswith(".Transformer"):
        raise CheckpointError(
            f"expected a Transformer at the top of {path}, got {shown(first['type'])} in "
            f"{shown(first['path'])}"
        )
    for module in others:
        if not is_plain_name(module["path"]):
            raise CheckpointError(
                f"expected modules in folders of their own in {path}, got {shown(module['path'])}"
            )
    folders = [Path(path) / module["path"] for module in others]
    return [folder for folder in folders if folder.exists()]


def keep_modules(source: str | Path, directory: str | Path) -> None:
    """Copy what stands behind the model of `source` into the folder of the pruned one, and let the
    folder say that it needs secateurs.

    Raises CheckpointError for a folder that cannot be read, or written.
    """
    source, directory = Path(source), Path(directory)
    settings = read_json(source / _SETTINGS) if (source / _SETTINGS).exists() else {}
    needs = settings.get("requirements")
    own = {"secateurs": {"specifier": f">={__version__}", "reason": _REASON}}
    settings["requirements"] = {**(needs if isinstance(needs, dict) else {}), **own}
    try:
        for folder in other_modules(source):
            for file in _files(folder):
                copy = directory / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        for file in (source / _MODULES, *source.glob(_TRANSFORMER)):
            shutil.copyfile(file, directory / file.name)
        with written_whole(directory / _SETTINGS) as scratch:
            scratch.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot copy the modules in {source}: {error}") from error


def _is_module(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("path", "type")
    )


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder. Raises CheckpointError for what is none."""
    check_folder(folder)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry
