"""`secateurs frontier`: what each speed costs, as a table and a picture."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateurs.cli.arguments import (
    SAMPLING,
    above_one,
    add_sampling,
    method_name,
    seed,
    settle,
)
from secateurs.cli.calibration import (
    add_sources,
    has_source,
    parted,
    read_rows,
    reads_text,
    shuffled_batches,
)
from secateurs.cli.dense_peers import add_peers, rows_of_peers, wanted_peers
from secateurs.cli.embeddings import QUALITY, add_pairs, judged_by_pairs
from secateurs.cli.paths import new_directory
from secateurs.cli.results import write_model
from secateurs.cli.shapes import add_shapes, shapes_of
from secateurs.cli.tasks import add_task, judged_by_task
from secateurs.cli.terminal import OK, quiet, tell
from secateurs.cli.timed_pruning import (
    EFFORTS,
    TIMED_EXAMPLES,
    add_effort,
    add_force,
    add_precisions,
    figures_of,
    measured_of,
    precision_of,
    print_figures,
)

SUMMARY = "measure what several speeds cost, and save the models"
EXAMPLE = "secateurs frontier --model bert --text text.txt --speedups 2 3 4 --out frontier"


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
    add_sources(parser)
    add_task(parser, required=False)
    add_pairs(parser)
    add_shapes(parser)
    add_precisions(parser)
    add_peers(parser)
    add_effort(parser)
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
    from secateurs.checks import dtype_name
    from secateurs.errors import BudgetError
    from secateurs.pruning import Budget
    from secateurs.search import Search

    quiet()
    settle(
        options,
        {**SAMPLING, "examples": TIMED_EXAMPLES, "force": False, "effort": EFFORTS[0]},
        {
            "data_dir": (options.task is not None, "with --task"),
            "pairs": (reads_text(options), "with --text or --data"),
        },
    )
    out, names = new_directory(options.out), wanted_peers(options)
    subject = _subject(options)
    model = subject.model
    shapes = shapes_of(options, model)
    search = Search(
        model,
        subject.training,
        shapes=shapes,
        method=options.method,
        precision=precision_of(options, timed=True),
        distill_on=subject.rest,
        seed=options.seed,
        force=options.force,
        progress=options.progress,
    )
    whole, results = subject.score(model), []
    for speedup in sorted(set(options.speedups)):
        try:
            found = search.meet(Budget(speedup=speedup), options.effort)
        except BudgetError as error:
            tell(options, f"{speedup:g} times as fast is left out: {error}")
            continue
        folder = out / f"speedup-{speedup:g}"
        if not options.no_models:
            measured = measured_of(found, shapes)
            write_model(found.model, subject.processor, options.model, folder, measured)
        score = subject.score(found.model)
        results.append({"target": speedup, **figures_of(found), **score})
    if not results:
        raise BudgetError("expected speeds that can be met, got none that is")
    peers = rows_of_peers(options, names, model, subject.training, search.mix, whole)
    told = {"results": results, "peers": peers}
    _report(options, out, told, whole, dtype_name(model.dtype))
    return OK, {"out": str(out), **told}


@dataclass(frozen=True)
class _Subject:
    """A model to prune, what reads its data, batches to decide on and the rest of them, and the
    score that a model reaches by name, if anything judges it."""

    model: Any
    processor: Any
    training: list[Any]
    rest: list[Any]
    score: Callable[[Any], dict[str, float]]


def _subject(options: argparse.Namespace) -> _Subject:
    """What the arguments say is pruned and judged. Raises DataError unless they name one source of
    data."""
    from secateurs.data.sentence_pairs import read_pairs
    from secateurs.errors import DataError
    from secateurs.storage.model_folders import open_model
    from secateurs.training.task_recipe import evaluate

    if has_source(options) == bool(options.task):
        raise DataError("expected one of --text, --data, --images and --task")
    if options.task:
        model, data = judged_by_task(options)
        chosen = random.Random(options.seed).sample(data.train, len(data.train))
        training, rest = (
            data.batches(part, options.batch_size)
            for part in (chosen[: options.examples], chosen[options.examples :])
        )
        random.Random(options.seed).shuffle(training)

        def score(judged: Any) -> dict[str, float]:
            return dict([next(iter(evaluate(judged, data).items()))])

        return _Subject(model, data.processor, training, rest, score)
    rows = read_rows(options)
    pairs = read_pairs(options.pairs) if options.pairs else None
    model = open_model(options.model)
    processor, training = shuffled_batches(options, model, rows)

    def ranked(judged: Any) -> dict[str, float]:
        return {QUALITY: judged_by_pairs(pairs, judged, options, options.model)}

    judge = ranked if pairs else lambda _: {}
    return _Subject(model, processor, *parted(options, training), judge)


def _report(
    options: argparse.Namespace,
    out: Any,
    told: dict[str, list[dict[str, Any]]],
    dense: dict[str, float],
    own: str,
) -> None:
    """Print and draw results and peers: the score by task or pairs, or the cosine where there is
    none. A peer that has no score is not drawn. `own` is the precision of the dense model."""
    from secateurs.cli import pictures
    from secateurs.cli.tables import write_json

    results, peers = told["results"], told["peers"]
    print_figures(results + peers, list(dense))
    if dense:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in dense.items())
        print(f"not pruned: {scores}\n")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "frontier.json", told)
    quality, best = next(iter(dense.items()), ("cosine", 1.0))
    # In another precision the whole model is no longer as good as the dense one.
    exact = [row for row in results if row["precision"] == own]
    points = [
        ("transformers", 1.0, best),
        *(("converted, whole", row["stock_ms"] / row["dense_ms"], best) for row in exact[:1]),
        *((f"{row['target']:g}x", row["speedup"], row[quality]) for row in results),
    ]
    beside = [(row["peer"], row["speedup"], row[quality]) for row in peers if quality in row]
    judge = options.task or (Path(options.pairs).name if options.pairs else None)
    named = f"{judge}, {quality}" if judge else pictures.COSINE
    pictures.frontier(out / "frontier.png", str(options.model), points, named, beside)
    print(f"saved to {out}")
