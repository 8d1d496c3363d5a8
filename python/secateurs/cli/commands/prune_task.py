"""`secateurs prune-task`: prune while a model is trained on a task, and judge it there."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from secateurs.cli.arguments import (
    SAMPLING,
    add_precision,
    add_pruning,
    add_sampling,
    epochs,
    method_options,
    positive,
    rate,
    settle,
)
from secateurs.cli.results import measured_here, write_model
from secateurs.cli.tasks import add_task, processor_of, reads_text
from secateurs.cli.terminal import OK, quiet, tell
from secateurs.errors import DataError

SUMMARY = "prune a model folder on a task with labels, where methods may train the model"
EXAMPLE = (
    "secateurs prune-task --model bert --task sst2 --method dsp --budget heads=0.5 --out pruned"
)

DEFAULTS: dict[str, Any] = {
    **SAMPLING,
    "prune_epochs": 2.0,
    "recover_epochs": 1.0,
    "training_precision": "fp32",
    "imitate": False,
    "no_refit": False,
}
TRAINED_IN = ("fp32", "bf16", "fp16")
# Arguments that decide where a run is found and what it tells, not how it ends; of the model and
# the data what is in them does.
WITHOUT_EFFECT = {
    "model", "data_dir", "out", "checkpoints", "json", "debug", "progress", "command", "run",
    "precision",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method, the task, and how long each phase trains."""
    add_pruning(parser)
    add_task(parser, required=True)
    parser.add_argument(
        "--train-examples",
        type=positive,
        metavar="N",
        help="use only the first N training examples (default: all)",
    )
    add_sampling(parser)
    for phase, meaning in (
        ("dense", "train before anything goes (default: 3 if the model has no head, else 0)"),
        ("prune", "train while a training method decides (default: 2)"),
        ("recover", "train with the plan decided (default: 1)"),
    ):
        parser.add_argument(f"--{phase}-epochs", type=epochs, metavar="N", help=meaning)
    parser.add_argument("--lr", type=rate, help="learning rate of all phases (default: 2e-5)")
    parser.add_argument(
        "--no-refit",
        action="store_true",
        default=None,
        help="of a method that does not train, leave the weights that stay as they were (default: "
        "fit them to the dense model's hidden states on the examples before they recover)",
    )
    parser.add_argument(
        "--imitate",
        action="store_true",
        default=None,
        help="learn the dense model's logits, too",
    )
    parser.add_argument(
        "--training-precision", choices=TRAINED_IN, help="of the training (default: fp32)"
    )
    add_precision(parser, former=TRAINED_IN)
    parser.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="go on from the checkpoints in this folder (default: OUT-checkpoints)",
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Fine-tune, prune, recover, judge, convert and save; what can be refused is refused before
    anything is trained."""
    import torch

    from secateurs.architectures.sites import find_sites
    from secateurs.cli.paths import checkpoints_beside, new_directory
    from secateurs.cli.tables import print_density, table
    from secateurs.conversion.builder import convert
    from secateurs.data.tasks import find_task
    from secateurs.pruning import METHODS, Budget, Needs, make_pruner
    from secateurs.pruning.run_folders import claim, model_digest, values_digest
    from secateurs.storage.model_folders import (
        check_head_is_used,
        has_classifier,
        open_classifier,
    )
    from secateurs.training.task_recipe import (
        Settings,
        TaskData,
        check_pruning,
        evaluate,
        prune_on_task,
        steps_of,
        train,
        versions,
    )
    from secateurs.training.trainer import Distillation

    quiet()
    method = METHODS[options.method]
    _rename(options)
    task = find_task(options.task, options.data_dir)
    settle(options, DEFAULTS, _effects(options, method.needs, task))
    out = new_directory(options.out)
    values = method_options(options.method, options.option, options.allocator)
    common: dict[str, Any] = {"allocator": options.allocator, **values}
    make_pruner(options.method, **common).check(Budget.parse(options.budget))
    work, progress = checkpoints_beside(options.checkpoints, out), options.progress
    if options.training_precision == "fp16" and not torch.cuda.is_available():
        raise DataError("expected a GPU to train in fp16 on, got none: bf16 needs none")
    if Needs.TRAINING in method.needs and options.prune_epochs <= 0:
        raise DataError(f"expected epochs for {method.name} to prune in, got 0")
    # What the task knows and the method asks.
    common = ({"pair": task.pair} if "pair" in method.options else {}) | common
    check_head_is_used(options.model, task.head)
    model = open_classifier(options.model, task.labels, options.seed, task.head)
    sites = find_sites(model)
    check_pruning(model, method.name, options.budget, common, seed=options.seed)
    processor = processor_of(options, model, task)
    data = TaskData.read(
        task, processor, options.data_dir, options.max_length, options.train_examples
    )
    settings = Settings(
        lr=options.lr or 2e-5,
        batch_size=options.batch_size,
        seed=options.seed,
        precision=options.training_precision,
        distillation=Distillation() if options.imitate else None,
    )
    steps = steps_of(data, options.prune_epochs, options.batch_size)
    check_pruning(model, method.name, options.budget, common, seed=options.seed, steps=steps)
    claim(
        work,
        {
            **{k: repr(v) for k, v in sorted(vars(options).items()) if k not in WITHOUT_EFFECT},
            "model": model_digest(model),
            "data": values_digest([*data.train, "validation", *data.validation]),
            "versions": versions(),
        },
    )
    seconds = {}
    before = options.dense_epochs
    if before is None:
        before = 0.0 if has_classifier(options.model, task.head) else 3.0
    if before:
        seconds["dense"] = train(model, data, before, work / "dense", settings, progress=progress)
    dense = evaluate(model, data)
    outcome = prune_on_task(
        model,
        data,
        options.method,
        options.budget,
        work,
        settings,
        prune_epochs=options.prune_epochs,
        recover_epochs=options.recover_epochs,
        examples=options.examples,
        progress=progress,
        options=common,
        refits=not options.no_refit,
    )
    some = data.batches(data.train[: options.examples], options.batch_size)
    fast = convert(
        outcome.model,
        outcome.plan,
        precision=options.precision,
        batches=some if options.precision else None,
    )
    converted = evaluate(fast, data)
    rows = [
        {"metric": name, "dense": dense[name], "pruned": outcome.metrics[name], "saved": value}
        for name, value in converted.items()
    ]
    told = [
        {task.name: row["metric"], "dense": row["dense"], "pruned": row["saved"]} for row in rows
    ]
    write_model(fast, processor, options.model, out, measured_here(told, fast))
    shutil.rmtree(work, ignore_errors=True)
    seconds |= outcome.seconds
    columns = {"metric": "metric"} | {k: f"{k}:.4f" for k in ("dense", "pruned", "saved")}
    print(f"{table(rows, columns)}\n")
    print("seconds: " + ", ".join(f"{phase} {s:.0f}" for phase, s in seconds.items()) + "\n")
    density = sites.density(outcome.plan)
    print_density(density, out)
    return OK, {
        "out": str(out),
        "task": task.name,
        "method": options.method,
        "budget": options.budget,
        "metrics": {"dense": dense, "pruned": outcome.metrics, "saved": converted},
        "seconds": seconds,
        "density": density,
    }


def _rename(options: argparse.Namespace) -> None:
    """Take what `--precision` said of the training before it was that of the converted model."""
    if options.precision not in TRAINED_IN:
        return
    if options.training_precision is not None:
        raise DataError(
            f"expected --precision int8 beside --training-precision, got {options.precision}"
        )
    tell(
        options,
        f"--precision {options.precision} of the training is now --training-precision "
        f"{options.precision}: the old name goes with the next release",
    )
    options.training_precision, options.precision = options.precision, None


def _effects(options: argparse.Namespace, needs: Any, task: Any) -> dict[str, tuple[bool, str]]:
    """Which arguments have an effect beside the others."""
    from secateurs.pruning import Needs

    at_once = Needs.TRAINING not in needs
    reads = bool(needs & (Needs.ACTIVATIONS | Needs.GRADIENTS)) or not options.no_refit
    phases = (options.dense_epochs, options.prune_epochs, options.recover_epochs)
    trains = any(phase is None or phase > 0 for phase in phases)
    return {
        "max_length": (reads_text(task), "for a task of text"),
        "examples": (at_once and reads, "for a method or a re-fit that reads some of the data"),
        "no_refit": (at_once, "for a method that does not train"),
        **dict.fromkeys(
            ("lr", "imitate", "training_precision"), (trains, "with epochs to train in")
        ),
    }
