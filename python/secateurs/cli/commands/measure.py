"""`secateurs measure`: a pruned model's speed, and what it cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.cli.arguments import add_precision, settle
from secateurs.cli.calibration import image_processor_of, tokenizer_of
from secateurs.cli.embeddings import QUALITY, add_pairs, judged_by_pairs
from secateurs.cli.results import measured_here
from secateurs.cli.shapes import add_timing, timed_shapes
from secateurs.cli.tasks import add_task, judged_by_task
from secateurs.cli.terminal import OK, quiet

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "time a pruned model folder against a dense one, or part by part"
EXAMPLE = "secateurs measure pruned --baseline bert --shapes 1x32 8x128"

_IMAGES = 256  # of a folder, at most, on which outputs are compared
_PROFILE = (
    "Each part is timed in calls of its own: the sum differs from the whole, above all where a "
    "layer runs as one operation, and its parts run one by one to be timed."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add both folders, the shapes, and a text to compare outputs on."""
    parser.add_argument("model", metavar="DIR", help="the pruned model folder")
    parser.add_argument("--baseline", metavar="DIR", help="the dense model folder")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="time each part of the model in the first folder; --baseline may be left out",
    )
    add_timing(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--text", metavar="FILE", help="also compare outputs on this text")
    shown.add_argument("--images", metavar="DIR", help="also compare outputs on these images")
    add_pairs(parser)
    add_task(parser, required=False)
    parser.add_argument(
        "--card",
        action="store_true",
        default=None,
        help="write what is measured into the model card of DIR, in place of what it says of that",
    )
    add_precision(parser)


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print the times, how near the outputs are to the baseline's, and the scores of both; or where
    the time of one model goes."""
    from secateurs.data.images import read_images
    from secateurs.data.sentence_pairs import read_pairs
    from secateurs.data.text import read_text
    from secateurs.errors import DataError
    from secateurs.storage.model_folders import open_model

    quiet()
    if options.baseline is None and not options.profile:
        raise DataError("expected --baseline, --profile or both, got neither")
    against = (options.baseline is not None, "with --baseline")
    with_task = (options.task is not None, "with --task")
    comparing = dict.fromkeys(("task", "text", "images", "pairs", "card"), against)
    settle(options, {}, {"data_dir": with_task, **comparing})
    rows: Sequence[Any] = ()
    if options.text:
        rows = read_text(options.text)
    elif options.images:
        rows = read_images(options.images, _IMAGES)
    pairs = read_pairs(options.pairs) if options.pairs else None
    if options.card:
        _check_card(options.model)
    model = open_model(options.model)
    if options.precision is not None:
        model = _rounded(model, options)
    result = {} if options.baseline is None else _compared(model, rows, pairs, options)
    if options.profile:
        result["profile"] = _profile(model, options)
    return OK, result


def _compared(
    model: nn.Module, rows: Sequence[Any], pairs: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Print times beside those of the baseline, how near the outputs are to its, and the scores by
    pairs and by a task."""
    from dataclasses import asdict

    from secateurs.cli.tables import speed_table, table
    from secateurs.data.images import image_batches
    from secateurs.data.text import batches
    from secateurs.measurement.quality import fidelity, speed
    from secateurs.storage.model_folders import open_model
    from secateurs.training.task_recipe import evaluate

    reading = argparse.Namespace(command="measure", model=options.baseline, max_length=128)
    if options.task:
        reading.task, reading.data_dir = options.task, options.data_dir
        dense, data = judged_by_task(reading)
    else:
        dense, data = open_model(options.baseline), None
    judged: list[Any] = []
    if options.text:
        judged = batches(tokenizer_of(reading, dense), rows, 32, reading.max_length)
    elif options.images:
        judged = image_batches(image_processor_of(options.baseline, dense), rows, 32)
    result: dict[str, Any] = {}
    if pairs is not None:  # before minutes of timing, for what cannot be judged is refused
        result["pairs"] = {
            name: {QUALITY: judged_by_pairs(pairs, each, reading, *folders)}
            for name, each, folders in (
                ("dense", dense, [options.baseline]),
                ("pruned", model, [options.model, options.baseline]),
            )
        }
    result["rows"] = speed(
        Path(options.baseline).name,
        dense,
        {"pruned": model},
        timed_shapes(options, dense),
        min_time=options.min_time,
        progress=options.progress,
    )
    print(speed_table(result["rows"]))
    if judged:
        result["cosine"] = asdict(fidelity(dense, model, judged))
        mean, worst = result["cosine"].values()
        print(f"\ncosine to the baseline: mean {mean:.4f}, worst 5% {worst:.4f}")
    if data is not None:
        result["scores"] = {"dense": evaluate(dense, data), "pruned": evaluate(model, data)}
    for key, judge in (
        ("pairs", options.pairs and Path(options.pairs).name),
        ("scores", options.task),
    ):
        if key in result:
            columns = {"metric": judge, "dense": "dense:.4f", "pruned": "pruned:.4f"}
            print(f"\n{table(_both(result[key]), columns)}")
    if options.card:
        _write_card(options, model, result)
    return result


def _both(scores: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each metric, with what both models reach."""
    return [
        {"metric": name, "dense": value, "pruned": scores["pruned"][name]}
        for name, value in scores["dense"].items()
    ]


def _check_card(folder: str) -> None:
    """Raise DataError unless a card may be written into `folder`."""
    from secateurs.errors import DataError
    from secateurs.storage.model_card import NAME, may_be_written
    from secateurs.storage.model_folders import is_pruned

    if not is_pruned(folder):
        raise DataError(f"expected a folder that secateurs saved to write a card in, got {folder}")
    if not may_be_written(Path(folder)):
        raise DataError(
            f"expected a {NAME} in {folder} that secateurs wrote and nobody changed, got another"
        )


def _write_card(options: argparse.Namespace, model: Any, result: dict[str, Any]) -> None:
    """Write the folder's card anew with what was measured: times by shape, and scores beside them,
    which hold for all shapes."""
    from secateurs.storage.model_card import write_card

    scores: dict[str, float] = {}
    if "cosine" in result:
        scores["cosine to the dense model"] = result["cosine"]["mean"]
    for key, judge in (("pairs", "pairs"), ("scores", options.task)):
        for row in _both(result[key]) if key in result else ():
            told = f"{row['metric']} of {judge}"
            scores |= {f"{told}, {name}": row[name] for name in ("dense", "pruned")}
    times: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        call = "x".join(map(str, row["shape"]))
        time = times.setdefault(call, {"batch x tokens": call})
        time[f"{row['variant']}, ms"] = row["ms"]
        if row["variant"] == "pruned":
            time["times as fast"] = row["speedup"]
    rows = [{**time, **scores} for time in times.values()]
    write_card(Path(options.model), model, measured_here(rows, model))


def _profile(model: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print where the time of a call goes, for each shape."""
    from dataclasses import asdict

    from secateurs.architectures.sites import find_sites
    from secateurs.cli.tables import table
    from secateurs.conversion.inherited import record_of
    from secateurs.data.batches import shown
    from secateurs.measurement.inputs import token_inputs
    from secateurs.measurement.parts import time_parts

    record, shapes = record_of(model), timed_shapes(options, model)
    sites = find_sites(model) if record is None else record.sites
    layers = [sites.layer_path(index) for index in range(len(sites.layers))]
    rows = [
        {"shape": list(size), **asdict(part)}
        for size in shown(shapes, len(shapes), "profile", options.progress)
        for part in time_parts(model, token_inputs(model, size), layers, min_time=options.min_time)
    ]
    columns = {
        "shape": "batch x tokens",
        "part": "part",
        "modules": "modules:d",
        "ms": "ms:.2f",
        "ms_p20": "p20:.2f",
        "ms_p80": "p80:.2f",
        "share": "of the whole:.1%",
    }
    print(f"\n{table(rows, columns)}\n\n{_PROFILE}")
    return rows


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
