"""`secateurs report`: a page about a pruned model folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secateurs.cli.paths import check_file
from secateurs.cli.terminal import OK, quiet

SUMMARY = "write a page about a pruned model folder, for a browser"
EXAMPLE = "secateurs report pruned --html report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder, and where the page goes."""
    parser.add_argument("model", metavar="DIR", help="a pruned model folder")
    parser.add_argument(
        "--html",
        required=True,
        metavar="FILE",
        help="one file of HTML that needs nothing else, neither a network nor scripts",
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Write the page, and say where it lies."""
    from secateurs.cli.contents import contents_of
    from secateurs.cli.html_report import page
    from secateurs.cli.tables import write_text
    from secateurs.errors import DataError
    from secateurs.measurement.environment import env_report
    from secateurs.storage.model_card import measured_in
    from secateurs.storage.model_folders import is_pruned

    quiet()
    check_file("--html", options.html)
    folder = Path(options.model)
    if not is_pruned(folder):
        raise DataError(f"expected a folder that secateurs saved, got a stock model in {folder}")
    held, measured, machine = contents_of(options.model), measured_in(folder), env_report()
    write_text(options.html, page(folder.resolve().name, held, measured, machine))
    print(f"written to {options.html}")
    told = {"html": options.html, "measured": None, "environment": machine, **held.as_json()}
    if measured is not None:
        told["measured"] = {"machine": measured.machine, "rows": list(measured.rows)}
    return OK, told
