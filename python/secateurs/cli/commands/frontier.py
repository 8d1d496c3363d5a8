"""`secateurs frontier`: what each speed costs, as a table and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from secateurs.cli.arguments import SAMPLING, above_one, add_sampling, method_name, seed, settle
from secateurs.cli.paths import new_directory
from secateurs.cli.results import write_model
from secateurs.cli.terminal import OK, quiet, tell
from secateurs.cli.timed_pruning import (
    TIMED_EXAMPLES,
    add_force,
    add_precision,
    add_shapes,
    figures_of,
    measured_of,
    print_figures,
    shapes_of,
    shuffled_batches,
)

SUMMARY = "measure what several speeds cost, and save the models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the speeds, the calls they are for, and the data that decides."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a transformers model folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the results")
    parser.add_argument(
        "--speedups",
        type=above_one,
        nargs="+",
        default=[2.0, 3.0, 4.0, 6.0],
        metavar="FACTOR",
        help="times as fast as transformers runs the model here (default: 2 3 4 6)",
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--text", metavar="FILE", help="read plain text, sentence by sentence")
    data.add_argument("--data", metavar="FILE", help="read JSON lines with text, maybe text_pair")
    add_shapes(parser)
    add_precision(parser)
    parser.add_argument(
        "--effort",
        choices=("quick", "normal", "long"),
        default="quick",
        help="of the search for each speed (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        type=method_name,
        help="a name that `secateurs methods` lists (default: the better of kprune and obs)",
    )
    parser.add_argument(
        "--no-models", action="store_true", help="keep the table and the picture, not the models"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of random numbers (default: 0)")
    add_sampling(parser)
    add_force(parser)


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Search for each speed, and save what was found; a speed out of reach is told and left out."""
    from secateurs.data.text import read_examples, read_text
    from secateurs.errors import BudgetError
    from secateurs.pruning import Budget
    from secateurs.search import Search
    from secateurs.storage.model_folders import open_model

    quiet()
    settle(options, {**SAMPLING, "examples": TIMED_EXAMPLES, "force": False}, {})
    out = new_directory(options.out)
    rows: Sequence[Any]
    rows = read_text(options.text) if options.text else read_examples(options.data)
    model = open_model(options.model)
    tokenizer, training = shuffled_batches(options, model, rows)
    search = Search(
        model,
        training[: -(-options.examples // options.batch_size)],
        shapes=shapes_of(options),
        method=options.method,
        precision=options.precision,
        seed=options.seed,
        force=options.force,
        progress=options.progress,
    )
    results = []
    for speedup in sorted(set(options.speedups)):
        try:
            found = search.meet(Budget(speedup=speedup), options.effort)
        except BudgetError as error:
            tell(options, f"{speedup:g} times as fast is left out: {error}")
            continue
        folder = out / f"speedup-{speedup:g}"
        if not options.no_models:
            measured = measured_of(found, shapes_of(options))
            write_model(found.model, tokenizer, options.model, folder, measured)
        results.append({"target": speedup, **figures_of(found)})
    if not results:
        raise BudgetError("expected speeds that can be met, got none that is")
    _report(options, out, results)
    return OK, {"out": str(out), "results": results}


def _report(options: argparse.Namespace, out: Any, results: list[dict[str, Any]]) -> None:
    from secateurs.cli import pictures
    from secateurs.cli.tables import write_json

    print_figures(results)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "frontier.json", results)
    stock, dense = results[0]["stock_ms"], results[0]["dense_ms"]
    points = [
        ("transformers", 1.0, 1.0),
        ("converted, whole", stock / dense, 1.0),
        *((f"{row['target']:g}x", row["speedup"], row["cosine"]) for row in results),
    ]
    pictures.frontier(out / "frontier.png", str(options.model), points)
    print(f"saved to {out}")
