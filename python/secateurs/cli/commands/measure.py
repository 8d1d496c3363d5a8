"""`secateurs measure`: a pruned model's speed, and what it cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secateurs.cli.arguments import add_precision, seconds, settle, shape
from secateurs.cli.tasks import add_task, judged_by_task
from secateurs.cli.terminal import OK, quiet

SUMMARY = "time a pruned model folder against a dense one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both folders, the shapes, and a text to compare outputs on."""
    parser.add_argument("model", metavar="DIR", help="the pruned model folder")
    parser.add_argument("--baseline", required=True, metavar="DIR", help="the dense model folder")
    parser.add_argument(
        "--shapes",
        type=shape,
        nargs="+",
        default=[(1, 32), (8, 128)],
        metavar="BxT",
        help="batch sizes and tokens (default: 1x32 8x128)",
    )
    parser.add_argument(
        "--min-time",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="sample each row at least so long (default: %(default)s)",
    )
    parser.add_argument("--text", metavar="FILE", help="also compare outputs on this text")
    add_task(parser, required=False)
    add_precision(parser)


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print the times, and the cosine to the baseline where there is a text."""
    from dataclasses import asdict

    from secateurs.cli.tables import speed_table, table
    from secateurs.cli.tokenizers import tokenizer_of
    from secateurs.data.text import batches, read_text
    from secateurs.measurement.quality import fidelity, speed
    from secateurs.storage.model_folders import open_model
    from secateurs.training.task_recipe import evaluate

    quiet()
    settle(options, {}, {"data_dir": (options.task is not None, "with --task")})
    sentences = read_text(options.text) if options.text else []
    reading = argparse.Namespace(command="measure", model=options.baseline, max_length=128)
    model = open_model(options.model)
    if options.precision is not None:
        model = _rounded(model, options)
    if options.task:
        reading.task, reading.data_dir = options.task, options.data_dir
        dense, data = judged_by_task(reading)
    else:
        dense, data = open_model(options.baseline), None
    judged: list[Any] = []
    if sentences:
        tokenizer = tokenizer_of(reading, dense)
        judged = batches(tokenizer, sentences, 32, reading.max_length)
    rows = speed(
        Path(options.baseline).name,
        dense,
        {"pruned": model},
        options.shapes,
        min_time=options.min_time,
        progress=options.progress,
    )
    print(speed_table(rows))
    result: dict[str, Any] = {"rows": rows}
    if judged:
        cosine = fidelity(dense, model, judged)
        result["cosine"] = asdict(cosine)
        print(
            f"\ncosine to the baseline: mean {cosine.mean:.4f}, "
            f"worst 5% {cosine.worst_twentieth:.4f}"
        )
    if data is not None:
        result["scores"] = {"dense": evaluate(dense, data), "pruned": evaluate(model, data)}
        dense_scores, pruned_scores = result["scores"].values()
        told = [
            {"metric": name, "dense": value, "pruned": pruned_scores[name]}
            for name, value in dense_scores.items()
        ]
        columns = {"metric": options.task, "dense": "dense:.4f", "pruned": "pruned:.4f"}
        print(f"\n{table(told, columns)}")
    return OK, result


def _rounded(model: Any, options: argparse.Namespace) -> Any:
    """The model on our kernels in the precision asked for, which a saved one already has or not."""
    from secateurs.conversion.builder import convert
    from secateurs.conversion.inherited import record_of
    from secateurs.errors import DataError
    from secateurs.plan import SparsityPlan

    record = record_of(model)
    if record is None:
        return convert(model, SparsityPlan(), precision=options.precision)
    if record.precision != options.precision:
        raise DataError(
            f"expected a dense model, or one saved in {options.precision}, in {options.model}, got "
            "a converted one in its own dtype: prune with --precision"
        )
    return model
