"""`secateurs demo`: the whole way on a real model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from secateurs.cli.arguments import above_one
from secateurs.cli.terminal import FAILED, OK, quiet
from secateurs.cli.timed_pruning import AUTO, PRECISIONS, add_effort

SUMMARY = "make a real model several times as fast, measure it, reload it (one to three minutes)"
EXAMPLE = "secateurs demo --quick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the results go, and how short the demo is."""
    parser.add_argument(
        "--out", default="secateurs-demo", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="run a short form, about a minute")
    add_effort(parser)
    parser.add_argument(
        "--speedup",
        type=above_one,
        metavar="FACTOR",
        help="times as fast as transformers runs the model here (default: 3)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", *PRECISIONS),
        default=AUTO,
        help="in which the fast model computes (default: the one that leaves the outputs nearest "
        "to the dense model's)",
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Run the demo; it fails if the reloaded model differs, or the fast one strays."""
    from secateurs.cli import demo

    quiet()
    settings = demo.QUICK if options.quick else demo.Settings()
    if options.effort is not None:
        settings = replace(settings, effort=options.effort)
    if options.speedup is not None:
        settings = replace(settings, speedup=options.speedup)
    settings = replace(settings, precision=options.precision)
    result = demo.run(options.out, settings, progress=options.progress)
    print(f"\n{demo.summary(result)}\n\n{options.out}: report.json, report.png, model/")
    return (OK if result["ok"] else FAILED), result
