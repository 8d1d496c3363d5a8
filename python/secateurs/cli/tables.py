"""Results as tables on the terminal, and as JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateurs.architectures.sites import Sites
from secateurs.errors import DataError
from secateurs.files import written_whole
from secateurs.plan import SparsityPlan


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Lay rows out as aligned text.

    Args:
        columns: for each key of a row, its heading, or `heading:format` as in `"speedup:.2f"`; a
            value that is absent or None shows as a dash.
    """
    heads = [c.partition(":")[0] for c in columns.values()]
    formats = [c.partition(":")[2] for c in columns.values()]
    cells = [
        [
            "-" if (v := row.get(key)) is None else _cell(v, f)
            for key, f in zip(columns, formats, strict=True)
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    right = [bool(f) for f in formats]
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w)
            for cell, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (heads, *cells)
    ]
    return "\n".join(lines)


SPEED_COLUMNS = {
    "shape": "batch x tokens",
    "variant": "model",
    "backend": "backend",
    "ms": "ms:.2f",
    "ms_p20": "p20:.2f",
    "ms_p80": "p80:.2f",
    "speedup": "speedup:.2f",
}


def speed_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay rows of `measurement.quality.speed` out as text."""
    return table(rows, SPEED_COLUMNS)


LAYER_COLUMNS = {
    "layer": "layer",
    "heads": "heads:d",
    "heads_of": "of:d",
    "neurons": "neurons:d",
    "neurons_of": "of:d",
    "weights": "weights:.1%",
}


def layers_kept(sites: Sites, plan: SparsityPlan) -> list[dict[str, int | float]]:
    """Count the heads and neurons that each layer keeps under `plan`, and had; and the share of its
    linears' weights that stay, which heads, neurons, blocks and patterns take away."""
    layers = [sites.keep(plan, i) for i in range(len(sites.layers))]
    return [
        {
            "layer": i,
            "heads": int(keep.heads.sum()),
            "heads_of": keep.shape.heads,
            "neurons": int(keep.neurons.sum()),
            "neurons_of": keep.shape.neurons,
            "weights": keep.parameters() / sum(n * k for n, k in keep.shape.linears().values()),
        }
        for i, keep in enumerate(layers)
    ]


def print_density(density: Mapping[str, float], out: Path) -> None:
    """Print what a pruned model kept, and where it was saved."""
    rows = [{"part": part, "kept": share} for part, share in density.items()]
    print(table(rows, {"part": "part", "kept": "kept:.1%"}))
    print(f"\nsaved to {out}")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all. Raises DataError if it cannot be written."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text whole or not at all. Raises DataError if it cannot be written."""
    try:
        with written_whole(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _cell(value: Any, form: str) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(str, value))
    return format(value, form)
