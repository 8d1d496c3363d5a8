"""Pruning to a time: the part of `secateurs prune` behind --speedup and --latency."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.cli.arguments import above_one, milliseconds
from secateurs.cli.calibration import parted, shuffled_batches
from secateurs.cli.results import measured_here, write_model
from secateurs.cli.shapes import add_shapes, shapes_of
from secateurs.cli.terminal import OK

if TYPE_CHECKING:
    from secateurs.search import Compressed
    from secateurs.storage.model_card import Measured

TIMED_EXAMPLES = 512
EFFORTS = ("quick", "normal", "long")  # the first is the default
AUTO, OWN = "auto", "own"
PRECISIONS = ("int8", "bfloat16", AUTO)
WITHOUT_A_TIME = ("int8", OWN)  # that convert alone makes


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the time to meet, the calls it is for, and how long to search."""
    parser.add_argument(
        "--speedup",
        type=above_one,
        metavar="FACTOR",
        help="find what must go for the model to be so many times as fast as transformers runs it "
        "here, at the least loss",
    )
    parser.add_argument(
        "--latency",
        type=milliseconds,
        metavar="TIME",
        help="the same for a call to take so many milliseconds, as 4ms",
    )
    add_shapes(parser)
    add_effort(parser)
    add_force(parser)


def add_effort(parser: argparse.ArgumentParser) -> None:
    """Add how long to search."""
    parser.add_argument(
        "--effort",
        choices=EFFORTS,
        help="of the search for a time: normal tries more choices, long distils too "
        f"(default: {EFFORTS[0]})",
    )


def add_precisions(parser: argparse.ArgumentParser) -> None:
    """Add in what the linears of the fast model compute, and `auto`, which a search settles."""
    parser.add_argument(
        "--precision",
        choices=(*PRECISIONS, OWN),
        help="int8 runs linears on weights and inputs of 8 bits, on the CPU; own is the model's "
        "own dtype; with a time to meet there are bfloat16, and auto: of all that this machine has "
        "products for, the one that leaves the outputs nearest to the dense model's (default: auto "
        "with a time to meet, else own)",
    )


def precision_of(options: argparse.Namespace, *, timed: bool) -> str | None:
    """The precision that was asked for, as `compress` and `convert` name it."""
    name: str | None = options.precision or (AUTO if timed else OWN)
    return None if name == OWN else name


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add the argument that goes on in spite of noise."""
    parser.add_argument(
        "--force",
        action="store_true",
        default=None,
        help="go on where the machine is too noisy for its times to be trusted",
    )


def prune_to_a_time(options: argparse.Namespace, rows: Sequence[Any], out: Path) -> tuple[int, Any]:
    """Search, convert, measure, save, and print what was measured."""
    from secateurs.architectures.sites import find_sites
    from secateurs.cli.tables import print_density
    from secateurs.pruning import Budget
    from secateurs.search import compress
    from secateurs.storage.model_folders import open_model

    model = open_model(options.model)
    processor, training = shuffled_batches(options, model, rows)
    deciding, rest = parted(options, training)
    shapes = shapes_of(options, model)
    budget = Budget(latency=options.latency, speedup=options.speedup)
    found = compress(
        model,
        deciding,
        budget,
        shapes=shapes,
        effort=options.effort,
        method=options.method,
        precision=precision_of(options, timed=True),
        distill_on=rest,
        seed=options.seed,
        force=options.force,
        progress=options.progress,
    )
    write_model(found.model, processor, options.model, out, measured_of(found, shapes))
    density = find_sites(model).density(found.plan)
    figures = figures_of(found)
    print_figures([figures])
    if len(found.trials) > 1:
        print(f"computes in {found.precision}, {found.plan.notes['why']}\n")
    print_density(density, out)
    return OK, {"out": str(out), "budget": str(budget), "density": density, **figures}


def figures_of(found: Compressed) -> dict[str, Any]:
    """What was measured of a result, for tables and files."""
    return {
        "stock_ms": found.stock,
        "dense_ms": found.dense,
        "asked_ms": found.asked,
        "predicted_ms": found.predicted,
        "ms": found.measured,
        "spread_ms": found.spread,
        "speedup": found.speedup,
        "distance": found.distance,
        "cosine": found.cosine,
        "precision": found.precision,
        "precisions": [asdict(trial) for trial in found.trials],
        "layers": [list(size) for size in found.sizes],
        "seconds": found.seconds,
    }


def measured_of(found: Compressed, shapes: Mapping[tuple[int, int], float]) -> Measured:
    """What was measured of a result, for its card."""
    calls = ", ".join(
        f"{batch}x{tokens}" + (f":{weight:g}" if len(shapes) > 1 else "")
        for (batch, tokens), weight in shapes.items()
    )
    row = {
        "batch x tokens": calls,
        "transformers, ms": found.stock,
        "pruned, ms": found.measured,
        "times as fast": found.speedup,
        "cosine to the dense model": found.cosine,
    }
    return measured_here([row], found.model)


def print_figures(rows: list[dict[str, Any]], scores: Sequence[str] = ()) -> None:
    """Print what was measured, one line for each result, with its `scores` on a task; the name of a
    dense peer stands first where a row has one."""
    from secateurs.cli.tables import table

    columns = {
        **({"peer": "dense peer"} if any("peer" in row for row in rows) else {}),
        "stock_ms": "transformers ms:.2f",
        "dense_ms": "converted, whole ms:.2f",
        "asked_ms": "asked ms:.2f",
        "predicted_ms": "predicted ms:.2f",
        "ms": "measured ms:.2f",
        "spread_ms": "spread:.2f",
        "speedup": "speedup:.2f",
        "precision": "precision",
        "cosine": "cosine:.4f",
        **{name: f"{name}:.4f" for name in scores},
        "seconds": "seconds:.0f",
    }
    print(table(rows, columns))
    print()
