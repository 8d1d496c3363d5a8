"""`secateurs inspect`: what a model folder holds."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.terminal import OK, quiet

SUMMARY = "show what a model folder has, or a pruned one kept, and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument("model", metavar="DIR", help="a model folder, stock or pruned")


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print what each layer keeps, how that came to be, and the decisions of `convert`."""
    from dataclasses import asdict

    from secateurs.architectures.sites import find_sites
    from secateurs.cli.tables import LAYER_COLUMNS, layers_kept, table
    from secateurs.conversion.report import SiteReport, conversion_of, explain
    from secateurs.plan import SparsityPlan
    from secateurs.storage.model_folders import is_pruned, open_model

    quiet()
    model = open_model(options.model)
    decisions: list[SiteReport] = []
    if is_pruned(options.model):
        record = conversion_of(model)
        sites, plan, decisions = record.sites, record.plan, explain(model)
    else:
        sites, plan = find_sites(model), SparsityPlan()
    layers = layers_kept(sites, plan)
    print(f"{options.model}: {type(model).__name__}, family {sites.architecture.model_type}\n")
    print(table(layers, LAYER_COLUMNS))
    if plan.notes:
        notes = ", ".join(f"{name} {value}" for name, value in plan.notes.items())
        print(f"\nhow it came to be: {notes}")
    if decisions:
        print(f"\n{decisions}")
    return OK, {
        "model": type(model).__name__,
        "family": sites.architecture.model_type,
        "layers": layers,
        "density": sites.density(plan),
        "notes": dict(plan.notes),
        "decisions": [asdict(d) for d in decisions],
    }
