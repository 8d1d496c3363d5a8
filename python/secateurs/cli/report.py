"""How results are told: tables on the terminal, a JSON file, a picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.architectures.sites import Sites
from secateurs.errors import DataError
from secateurs.files import written_whole
from secateurs.plan import SparsityPlan


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as aligned text.

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
    """Rows of `evaluation.speed` as text."""
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
    """Heads and neurons each layer keeps under `plan`, and how many it had; and the share of the
    weights of its linears, which heads, neurons, blocks and patterns take away."""
    kept = [sites.keep(plan, i) for i in range(len(sites.layers))]
    return [
        {
            "layer": i,
            "heads": int(keep.heads.sum()),
            "heads_of": keep.shape.heads,
            "neurons": int(keep.neurons.sum()),
            "neurons_of": keep.shape.neurons,
            "weights": keep.parameters() / sum(n * k for n, k in keep.shape.linears().values()),
        }
        for i, keep in enumerate(kept)
    ]


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all. Raises DataError if it cannot be written."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    try:
        with written_whole(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def draw(
    path: str | Path,
    title: str,
    points: Sequence[tuple[str, float, float]],
    layers: Sequence[Mapping[str, Any]],
) -> None:
    """Draw speed against fidelity, and what is left of each layer.

    Args:
        points: (name, speedup over dense, mean cosine to dense).
        layers: as `layers_kept` returns them.

    Raises DataError if matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError(
            "expected matplotlib, to draw the report, got none: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    speed, kept = figure.subplots(1, 2)

    for name, speedup, cosine in points:
        speed.plot(speedup, cosine, "o", markersize=8)
        speed.annotate(name, (speedup, cosine), (0, 8), textcoords="offset points", ha="center")
    speed.axvline(1, color="0.8", linewidth=1, zorder=0)
    speed.set(
        xlabel="speedup over the dense model",
        ylabel="mean cosine to the dense model",
        title="speed against fidelity",
    )
    speed.margins(0.2)

    places = range(len(layers))
    for part, shift in (("heads", -0.2), ("neurons", 0.2)):
        shares = [100 * layer[part] / max(1, layer[f"{part}_of"]) for layer in layers]
        bars = kept.bar([p + shift for p in places], shares, 0.38, label=part)
        kept.bar_label(bars, [str(layer[part]) for layer in layers], fontsize=7)
    kept.set(xlabel="layer", ylabel="% kept", title="kept heads and neurons", ylim=(0, 125))
    kept.set_xticks(list(places))
    kept.legend(loc="upper center", ncols=2)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def _cell(value: Any, form: str) -> str:
    if isinstance(value, (tuple, list)):
        return "x".join(map(str, value))
    return format(value, form)
