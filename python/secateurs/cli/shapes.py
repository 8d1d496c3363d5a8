"""The calls that are timed: batch sizes and tokens."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.arguments import seconds, shape, weighted_shape

_SEARCHED = (8, 128)
_TIMED = ((1, 32), (8, 128))


def add_shapes(parser: argparse.ArgumentParser) -> None:
    """Add the calls that a time is for."""
    parser.add_argument(
        "--shape",
        action="append",
        type=weighted_shape,
        metavar="BxT[:WEIGHT]",
        help="batch size and tokens of the calls that count; once for each kind of call, with how "
        "often it comes, as 1x32:0.7 (default: 8x128; of images the tokens that they have)",
    )


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add which calls are timed, and how long."""
    parser.add_argument(
        "--shapes",
        type=shape,
        nargs="+",
        metavar="BxT",
        help="batch sizes and tokens to time (default: 1x32 8x128; of images the tokens that they "
        "have)",
    )
    parser.add_argument(
        "--min-time",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="sample each shape at least so long (default: %(default)s)",
    )


def shapes_of(options: argparse.Namespace, model: Any) -> dict[tuple[int, int], float]:
    """The weights of the shapes that a search is for; a shape that comes twice counts twice."""
    weights: dict[tuple[int, int], float] = {}
    for size, weight in options.shape or [(_fitting(_SEARCHED, model), 1.0)]:
        weights[size] = weights.get(size, 0.0) + weight
    return weights


def timed_shapes(options: argparse.Namespace, model: Any) -> list[tuple[int, int]]:
    """The shapes to time."""
    return options.shapes or [_fitting(size, model) for size in _TIMED]


def _fitting(size: tuple[int, int], model: Any) -> tuple[int, int]:
    """A shape with the tokens that a model makes of every input, if it makes always as many."""
    from secateurs.measurement.inputs import tokens_of_an_input

    batch, tokens = size
    return batch, tokens_of_an_input(model) or tokens
