"""Pictures of results: speed against fidelity, and what is left of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateurs.errors import DataError

COSINE = "mean cosine to the dense model"
Point = tuple[str, float, float]


def draw(
    path: str | Path,
    title: str,
    points: Sequence[Point],
    layers: Sequence[Mapping[str, Any]],
) -> None:
    """Draw speed against fidelity, and what is left of each layer.

    Args:
        points: (name, speedup over dense, mean cosine to dense).
        layers: as `layers_kept` returns them.

    Raises DataError if matplotlib is not installed, or the file cannot be written.
    """
    figure = _figure(10, title)
    speed, parts = figure.subplots(1, 2)
    _speed_against_quality(speed, points, COSINE)
    _kept_parts(parts, layers)
    _save(figure, path)


def frontier(
    path: str | Path,
    title: str,
    points: Sequence[Point],
    quality: str = COSINE,
    peers: Sequence[Point] = (),
) -> None:
    """Draw speed against quality alone. Args and errors as of `draw`; `quality` names the third of
    each point, and `peers` are points of dense models in other runtimes."""
    figure = _figure(6, title)
    axes = figure.subplots()
    _speed_against_quality(axes, points, quality)
    for name, speedup, value in peers:
        axes.plot(speedup, value, "s", markersize=8)
        # Below and aslant: peers often lie close to each other, and to the dense model.
        axes.annotate(
            name,
            (speedup, value),
            (0, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=30,
        )
    _save(figure, path)


def kept_parts(path: str | Path, title: str, layers: Sequence[Mapping[str, Any]]) -> None:
    """Draw what is left of each layer alone. Args and errors as of `draw`."""
    figure = _figure(max(6.0, 0.45 * len(layers)), title)
    _kept_parts(figure.subplots(), layers)
    _save(figure, path)


def _figure(width: float, title: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError(
            "expected matplotlib, to draw the report, got none: pip install matplotlib"
        ) from None
    figure = Figure(figsize=(width, 4), layout="constrained")
    figure.suptitle(title)
    return figure


def _speed_against_quality(axes: Any, points: Sequence[Point], quality: str) -> None:
    at: dict[tuple[float, float], list[Point]] = {}
    for point in points:
        at.setdefault((round(point[1], 2), round(point[2], 3)), []).append(point)
    for here in at.values():
        _, *place = here[0]
        axes.plot(*place, "o", markersize=8)
        names = ", ".join(name for name, *_ in here)
        axes.annotate(names, tuple(place), (0, 8), textcoords="offset points", ha="center")
    axes.axvline(1, color="0.8", linewidth=1, zorder=0)
    axes.set(
        xlabel="speedup over the dense model",
        ylabel=quality,
        title="speed against fidelity" if quality == COSINE else "speed against score",
    )
    axes.margins(0.2)


def _kept_parts(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(layers))
    for part, shift in (("heads", -0.2), ("neurons", 0.2)):
        shares = [100 * layer[part] / max(1, layer[f"{part}_of"]) for layer in layers]
        bars = axes.bar([p + shift for p in places], shares, 0.38, label=part)
        axes.bar_label(bars, [str(layer[part]) for layer in layers], fontsize=7)
    axes.set(xlabel="layer", ylabel="% kept", title="kept heads and neurons", ylim=(0, 125))
    axes.set_xticks(list(places))
    axes.legend(loc="upper center", ncols=2)


def _save(figure: Any, path: str | Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
