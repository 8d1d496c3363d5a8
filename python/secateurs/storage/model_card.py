"""Model cards: the README.md of a saved folder says what the model lost, how it is opened, and what
was measured of it. A card that somebody else wrote, or changed, is left alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from secateurs import __version__
from secateurs.conversion.report import Conversion, conversion_of
from secateurs.errors import CheckpointError
from secateurs.files import written_whole
from secateurs.reading import read_bytes
from secateurs.storage.blueprint import is_stock
from secateurs.storage.sentence_folders import class_of_folder

NAME = "README.md"
MOST_BYTES = 4 << 20  # of a card; none of ours comes near
_SIGNATURE = re.compile(r"<!-- Card of secateurs, unchanged: ([0-9a-f]{16}) -->\n")
_MEASURED = re.compile(  # as `_measured` writes it
    r"\n## Measured\n\nOn (?P<machine>[^\n]*)\.\n\n(?P<table>\|[^\n]*\n\|[-:|]*(?:\n\|[^\n]*)*)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"models--([A-Za-z0-9][\w.]*(?:-[\w.]+)*)--([\w.-]+)")
_WHERE = "PATH-OR-NAME"  # of the folder, which may be moved


class Measured(NamedTuple):
    """What was measured of a model.

    Attributes:
        rows: with the same headings in each; numbers are shown with three digits or more.
        machine: and the versions that it was measured on.
    """

    rows: Sequence[Mapping[str, Any]]
    machine: str


def write_card(
    directory: Path,
    model: nn.Module,
    measured: Measured | None = None,
    tags: Sequence[str] = (),
) -> bool:
    """Write the card of a converted model, and return whether it was: a card in `directory` that is
    not ours, or was changed since, stays.

    Raises OSError if it cannot be written, CheckpointError for settings of sentence-transformers
    that cannot be read.
    """
    path, opened_by = directory / NAME, class_of_folder(directory)
    if not may_be_written(directory):
        return False
    with written_whole(path) as scratch:
        scratch.write_text(card(model, opened_by, measured, tags), encoding="utf-8")
    return True


def may_be_written(directory: Path) -> bool:
    """Whether there is no card in a folder, or one that is ours and was not changed."""
    path = directory / NAME
    return not path.exists() or is_ours(path)


def is_ours(path: Path) -> bool:
    """Whether a card was written here, and not changed since."""
    return _our_text(path) is not None


def measured_in(directory: Path) -> Measured | None:
    """What the card of a folder says was measured, each figure as the text that it shows; None for
    a card without figures, or that is not ours, or was changed since."""
    text = _our_text(directory / NAME)
    found = _MEASURED.search(text) if text is not None else None
    if found is None:
        return None
    names, _, *rows = (line.strip("| ").split(" | ") for line in found["table"].splitlines())
    if any(len(row) != len(names) for row in rows):
        return None
    return Measured([dict(zip(names, row, strict=True)) for row in rows], found["machine"])


def _our_text(path: Path) -> str | None:
    """The text of a card that was written here, and not changed since; None of any other."""
    try:
        content = read_bytes(path, MOST_BYTES)
    except CheckpointError:
        return None
    text = content.decode("utf-8", errors="replace").replace("\r\n", "\n")
    found = _SIGNATURE.search(text)
    ours = found is not None and found[1] == _digest(_SIGNATURE.sub("", text))
    return text if ours else None


def card(
    model: nn.Module,
    opened_by: str | None = None,
    measured: Measured | None = None,
    more_tags: Sequence[str] = (),
) -> str:
    """The text of the card of a converted model.

    Args:
        opened_by: the class of sentence-transformers that opens the folder; None for transformers.
        more_tags: by which the model is found on a hub, besides our own.
    """
    conversion, config = conversion_of(model), getattr(model, "config", None)
    base = hub_name(config)
    library = "sentence-transformers" if opened_by else "transformers"
    own_tags = ["secateurs", "pruned", *([opened_by.lower()] if opened_by else [])]
    tags = [*own_tags, *(tag for tag in more_tags if tag not in own_tags)]
    head = ["---", f"library_name: {library}", *([f"base_model: {base}"] if base else []), "tags:"]
    body = "\n".join(
        (
            *_opening(model, opened_by, base),
            *_kept(conversion),
            *([] if measured is None else _measured(measured)),
        )
    )
    front = "\n".join((*head, *(f"- {json.dumps(tag)}" for tag in tags), "---", ""))
    digest = _digest(f"{front}{body}\n")
    return f"{front}<!-- Card of secateurs, unchanged: {digest} -->\n{body}\n"


def hub_name(config: Any) -> str | None:
    """The name on a hub of the model that a config came with, as `owner/name`; None for one of a
    folder, whose path says nothing to others."""
    path = str(getattr(config, "_name_or_path", None) or "")
    if cached := _CACHED.search(path):
        return "/".join(cached.groups())
    came = getattr(config, "_commit_hash", None) is not None and not Path(path).exists()
    return path if came and _HUB_NAME.fullmatch(path) else None


def _opening(model: nn.Module, opened_by: str | None, base: str | None) -> Iterator[str]:
    cls = type(model)
    yield f"# {base or cls.__name__}, pruned"
    yield ""
    yield (
        f"A `{cls.__name__}` without what a plan removes. It runs on kernels of secateurs, and "
        "does not open without it:"
    )
    yield f"\n```sh\npip install 'secateurs>={__version__}'\n```\n"
    if opened_by:
        lines = [
            "import secateurs",
            f"from sentence_transformers import {opened_by}",
            "",
            f'model = {opened_by}("{_WHERE}")',
        ]
    elif is_stock(cls):
        lines = [
            "import secateurs",
            f"from transformers import {cls.__name__}",
            "",
            f'model = {cls.__name__}.from_pretrained("{_WHERE}")',
        ]
    else:
        lines = [
            "import secateurs",
            "",
            f'model = secateurs.load("{_WHERE}", model_class={cls.__name__})',
        ]
    yield "\n".join(("```python", *lines, "```"))


def _kept(conversion: Conversion) -> Iterator[str]:
    """What the plan left, of the whole model and layer by layer."""
    sites, plan = conversion.sites, conversion.plan
    density = sites.density(plan)
    kept = ", ".join(f"{density[part]:.1%} of the {part}" for part in ("heads", "neurons"))
    yield (
        f"\n## What is left\n\nThe layers keep {kept}, and {density['parameters']:.1%} of the "
        "weights of their linears."
    )
    method = plan.notes.get("method")
    if isinstance(method, str) and re.fullmatch(r"\w{1,40}", method):
        yield f"What goes was chosen by the method `{method}`."
    if conversion.precision is not None:
        yield f"Linears compute in {conversion.precision}."
    yield "\n| layer | heads | neurons | weights |\n|---:|---:|---:|---:|"
    for i, shape in enumerate(sites.layers):
        keep = sites.keep(plan, i)
        weights = keep.parameters() / sum(n * k for n, k in shape.linears().values())
        yield (
            f"| {i} | {int(keep.heads.sum())} of {shape.heads} | {int(keep.neurons.sum())} of "
            f"{shape.neurons} | {weights:.1%} |"
        )


def _measured(measured: Measured) -> Iterator[str]:
    names = list(measured.rows[0])
    yield f"\n## Measured\n\nOn {measured.machine}.\n"
    yield f"| {' | '.join(names)} |\n|{'---:|' * len(names)}"
    for row in measured.rows:
        yield f"| {' | '.join(_cell(row[name]) for name in names)} |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"
    return "-" if value is None else str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
