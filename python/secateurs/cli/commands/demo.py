"""`secateurs demo`: the whole way on a real model."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.terminal import FAILED, OK, quiet

SUMMARY = "prune a real model, measure it, reload it (about 4 minutes)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the results go, and how short the demo is."""
    parser.add_argument(
        "--out", default="secateurs-demo", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="run a short form, under a minute")


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Run the demo; it fails if the reloaded model differs, or the fast one strays."""
    from secateurs.cli import demo

    quiet()
    settings = demo.QUICK if options.quick else demo.Settings()
    result = demo.run(options.out, settings, progress=options.progress)
    print(f"\n{demo.summary(result)}\n\n{options.out}: report.json, report.png, model/")
    return (OK if result["ok"] else FAILED), result
