"""`secateurs prune`: decide in one pass over text or images, and save the fast model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateurs.cli.arguments import (
    SAMPLING,
    add_pruning,
    add_sampling,
    method_options,
    positive,
    rate,
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
from secateurs.cli.paths import new_directory
from secateurs.cli.results import write_model
from secateurs.cli.terminal import OK, quiet
from secateurs.cli.timed_pruning import (
    EFFORTS,
    TIMED_EXAMPLES,
    WITHOUT_A_TIME,
    add_precisions,
    add_target,
    precision_of,
    prune_to_a_time,
)
from secateurs.errors import DataError, MethodError

SUMMARY = "prune a model folder on text or images and save the fast model"
EXAMPLE = "secateurs prune --model bert --text text.txt --speedup 3 --shape 8x128 --out pruned"
_TIMED = "with --speedup or --latency"
_SOURCES = "--text, --data or --images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the target, the method, the data it reads, and how the rest recovers."""
    add_pruning(parser, needs_budget=False)
    add_target(parser)
    add_precisions(parser)
    add_sources(parser)
    add_sampling(parser)
    parser.add_argument(
        "--no-refit",
        action="store_true",
        default=None,
        help="leave the weights that stay as they were (default: fit them to the dense model's "
        "hidden states on the examples, in closed form)",
    )
    parser.add_argument(
        "--distill",
        type=positive,
        metavar="STEPS",
        help="recover by so many steps of distillation",
    )
    parser.add_argument("--lr", type=rate, help="learning rate of --distill (default: 1e-3)")


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Prune, re-fit, recover, convert and save; bad input is refused before the model is read."""
    quiet()
    targets = [options.budget, options.speedup, options.latency]
    if sum(target is not None for target in targets) != 1:
        raise DataError(
            "expected one of --budget, --speedup and --latency, to know how much goes, got "
            f"{'more' if any(target is not None for target in targets) else 'none'}"
        )
    timed = options.budget is None
    _settle(options, timed)
    out = new_directory(options.out)
    prepared = None if timed else _checked_budget(options)
    if timed and not has_source(options):
        raise DataError(f"expected {_SOURCES}, which a time needs, got none of them")
    rows = read_rows(options) if has_source(options) else ()
    if timed:
        return prune_to_a_time(options, rows, out)
    assert prepared is not None
    return _prune_to_a_budget(options, prepared, rows, out)


def _settle(options: argparse.Namespace, timed: bool) -> None:
    """Refuse arguments without an effect, and fill in defaults."""
    if not timed:
        options.method = options.method or "gradient"
    reads_data, has_data = timed or _reads_data(options.method), has_source(options)
    effects = {
        "allocator": (not timed, "with --budget"),
        "distill": (not timed, "with --budget: a time has --effort long"),
        "shape": (timed, _TIMED),
        "effort": (timed, _TIMED),
        "force": (timed, _TIMED),
        "examples": (
            has_data and (reads_data or not options.no_refit),
            "with data, for a method that reads some of it, or to re-fit on",
        ),
        "no_refit": (has_data and not timed, f"with --budget, and {_SOURCES}"),
        "batch_size": (has_data, f"with {_SOURCES}"),
        "max_length": (reads_text(options), "with --text or --data"),
        "lr": (options.distill is not None, "with --distill"),
    }
    if not timed and options.precision not in (None, *WITHOUT_A_TIME):
        raise DataError(f"expected --precision {options.precision} only {_TIMED}")
    defaults = {"distill": 0, "no_refit": False, "effort": EFFORTS[0], "force": False}
    sampling = {**SAMPLING, "examples": TIMED_EXAMPLES} if timed else SAMPLING
    settle(options, {**sampling, **defaults}, effects)
    if timed and options.option:
        raise DataError("expected --option only with --budget: here it would have no effect")


def _reads_data(method: str) -> bool:
    from secateurs.pruning import METHODS, Needs

    return bool(METHODS[method].needs & (Needs.ACTIVATIONS | Needs.GRADIENTS))


def _checked_budget(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the method, once all that can be refused without the model was."""
    from secateurs.pruning import METHODS, Budget, Needs, make_pruner

    values = method_options(options.method, options.option, options.allocator)
    common: dict[str, Any] = {"allocator": options.allocator, **values}
    make_pruner(options.method, **common).check(Budget.parse(options.budget))
    if Needs.TRAINING in METHODS[options.method].needs:
        raise MethodError(
            f"expected the command prune-task, in which {options.method} trains the model, got "
            "prune"
        )
    reads_data = _reads_data(options.method)
    if not has_source(options) and (reads_data or options.distill):
        reader = f"method {options.method}" if reads_data else "--distill"
        raise DataError(f"expected {_SOURCES}, which {reader} needs, got none of them")
    return common


def _prune_to_a_budget(
    options: argparse.Namespace, common: dict[str, Any], rows: Sequence[Any], out: Path
) -> tuple[int, Any]:
    from secateurs.architectures.sites import find_sites
    from secateurs.cli.tables import print_density
    from secateurs.conversion.builder import convert
    from secateurs.pruning import prune
    from secateurs.reconstruction import refit
    from secateurs.storage.model_folders import open_model
    from secateurs.training.distillation import distill
    from secateurs.training.task_recipe import check_pruning

    model = open_model(options.model)
    check_pruning(model, options.method, options.budget, common, seed=options.seed)
    processor, training = (None, []) if not rows else shuffled_batches(options, model, rows)
    calibration, _ = parted(options, training)
    plan = prune(
        model,
        calibration,
        method=options.method,
        budget=options.budget,
        seed=options.seed,
        progress=options.progress,
        **common,
    )
    recovered = model
    if calibration and not options.no_refit:
        # Who distils needs the dense model as its teacher.
        inplace = not options.distill
        recovered = refit(model, plan, calibration, inplace=inplace, progress=options.progress)
    if options.distill:
        recovered = distill(
            recovered,
            plan,
            training,
            teacher=model,
            steps=options.distill,
            lr=options.lr or 1e-3,
            seed=options.seed,
            progress=options.progress,
        )
    density = find_sites(model).density(plan)
    precision = precision_of(options, timed=False)
    fast = convert(
        recovered,
        plan,
        precision=precision,
        batches=calibration if calibration and precision else None,
        inplace=True,
    )
    write_model(fast, processor, options.model, out)
    print_density(density, out)
    return OK, {
        "out": str(out),
        "method": options.method,
        "budget": options.budget,
        "density": density,
    }
