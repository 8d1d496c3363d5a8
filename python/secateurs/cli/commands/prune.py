"""`secateurs prune`: decide in one pass over text or batches, and save the fast model."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
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
from secateurs.cli.terminal import OK, quiet
from secateurs.errors import DataError, MethodError

SUMMARY = "prune a model folder on text and save the fast model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method, the data it reads, and how the rest recovers."""
    add_pruning(parser)
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--text", metavar="FILE", help="read plain text, sentence by sentence, to decide what goes"
    )
    data.add_argument(
        "--data", metavar="FILE", help="read JSON lines with text, and maybe text_pair and label"
    )
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
    from secateurs.architectures.sites import find_sites
    from secateurs.cli.paths import new_directory
    from secateurs.cli.tables import print_density
    from secateurs.cli.tokenizers import tokenizer_of
    from secateurs.conversion.builder import convert
    from secateurs.data.text import batches, read_examples, read_text
    from secateurs.pruning import METHODS, Budget, Needs, make_pruner, prune
    from secateurs.reconstruction import refit
    from secateurs.storage.checkpoint import save
    from secateurs.storage.model_folders import open_model
    from secateurs.training.distillation import distill
    from secateurs.training.task_recipe import check_pruning

    quiet()
    needs = METHODS[options.method].needs
    reads_data = bool(needs & (Needs.ACTIVATIONS | Needs.GRADIENTS))
    has_data = bool(options.text or options.data)
    effects = {
        "examples": (
            has_data and (reads_data or not options.no_refit),
            "with data, for a method that reads some of it, or to re-fit on",
        ),
        "no_refit": (has_data, "with --text or --data"),
        "batch_size": (has_data, "with --text or --data"),
        "max_length": (has_data, "with --text or --data"),
        "lr": (options.distill is not None, "with --distill"),
    }
    settle(options, {**SAMPLING, "distill": 0, "no_refit": False}, effects)
    out = new_directory(options.out)
    values = method_options(options.method, options.option, options.allocator)
    common: dict[str, Any] = {"allocator": options.allocator, **values}
    make_pruner(options.method, **common).check(Budget.parse(options.budget))
    if Needs.TRAINING in needs:
        raise MethodError(
            f"expected the command prune-task, in which {options.method} trains the model, got "
            "prune"
        )
    rows: Sequence[Any] = ()
    if has_data:
        rows = read_text(options.text) if options.text else read_examples(options.data)
    elif reads_data or options.distill:
        reader = f"method {options.method}" if reads_data else "--distill"
        raise DataError(f"expected --text or --data, which {reader} needs, got neither")
    model = open_model(options.model)
    check_pruning(model, options.method, options.budget, common, seed=options.seed)
    tokenizer, training = None, []
    if rows:
        tokenizer = tokenizer_of(options, model)
        training = batches(tokenizer, rows, options.batch_size, options.max_length)
        random.Random(options.seed).shuffle(training)
    calibration = training[: -(-options.examples // options.batch_size)]
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
        recovered = refit(model, plan, calibration, progress=options.progress)
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
    save(convert(recovered, plan), out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    density = find_sites(model).density(plan)
    print_density(density, out)
    return OK, {
        "out": str(out),
        "method": options.method,
        "budget": options.budget,
        "density": density,
    }
