"""`secateurs inspect`: what a model folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secateurs.cli.arguments import picture
from secateurs.cli.paths import check_file
from secateurs.cli.terminal import OK, printable, quiet

SUMMARY = "show what a model folder has, or a pruned one kept, and why"
EXAMPLE = "secateurs inspect pruned --picture kept.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument("model", metavar="DIR", help="a model folder, stock or pruned")
    parser.add_argument(
        "--picture",
        type=picture,
        metavar="FILE",
        help="also draw the heads and neurons that each layer keeps, as .png, .svg or .pdf",
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print what each layer keeps, how that came to be, and the decisions of `convert`."""
    from secateurs.cli import pictures
    from secateurs.cli.contents import contents_of
    from secateurs.cli.tables import LAYER_COLUMNS, table

    quiet()
    check_file("--picture", options.picture)
    held = contents_of(options.model)
    print(f"{options.model}: {held.model}, family {held.family}\n")
    print(table(held.layers, LAYER_COLUMNS))
    if held.notes:
        notes = ", ".join(f"{name} {value}" for name, value in held.notes.items())
        print(f"\nhow it came to be: {printable(notes)}")
    if held.decisions:
        print(f"\n{held.decisions}")
    if options.picture:
        pictures.kept_parts(options.picture, Path(options.model).name, held.layers)
        print(f"\ndrawn in {options.picture}")
    return OK, held.as_json()
