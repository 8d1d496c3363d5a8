"""The command line's arguments: what can be asked for, and how its words are read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from secateurs import __version__
from secateurs.errors import DataError

LARGEST = 10**9  # of whole numbers: larger ones are typing errors, and overflow
# What an option of prune is where it is not given; they are told apart, for none is passed over.
PRUNE_DEFAULTS: dict[str, Any] = {
    "examples": 256,
    "batch_size": 16,
    "max_length": 128,
    "distill": 0,
    "prune_epochs": 2.0,
    "recover_epochs": 1.0,
    "precision": "fp32",
    "imitate": False,
}
_OF_A_TASK = (
    "data_dir",
    "train_examples",
    "dense_epochs",
    "prune_epochs",
    "recover_epochs",
    "imitate",
    "precision",
    "checkpoints",
)


def parser(runs: Mapping[str, Callable[[argparse.Namespace], Any]]) -> argparse.ArgumentParser:
    """The parser of the command line; `runs` says what carries out each command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", metavar="FILE", help="also write the result to this file")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--no-progress", dest="progress", action="store_false", help="no progress bars"
    )
    top = argparse.ArgumentParser(
        prog="secateurs", description="Prune trained Transformers and run them faster."
    )
    top.add_argument("--version", action="version", version=f"secateurs {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=summary, description=summary)
        added.set_defaults(run=runs[name])
        return added

    demo = command("demo", "prune a real model, measure it, reload it (about 4 minutes)")
    demo.add_argument("--out", default="secateurs-demo", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--quick", action="store_true", help="a short form, under a minute")

    prune = command("prune", "prune a model folder and save the fast model")
    prune.add_argument("--model", required=True, metavar="DIR", help="a transformers model folder")
    prune.add_argument("--out", required=True, metavar="DIR")
    prune.add_argument(
        "--budget", required=True, help="fractions to remove, as heads=0.5,neurons=0.5"
    )
    prune.add_argument("--method", default="gradient", type=_method, help="default: %(default)s")
    prune.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="of the method",
    )
    data = prune.add_mutually_exclusive_group()
    data.add_argument(
        "--text", metavar="FILE", help="plain text to calibrate on, sentence by sentence"
    )
    data.add_argument(
        "--data", metavar="FILE", help="JSON lines with text, and maybe text_pair and label"
    )
    prune.add_argument(
        "--examples", type=_positive, help="examples that decide what goes; default: 256"
    )
    prune.add_argument("--batch-size", type=_positive, help="default: 16")
    prune.add_argument("--max-length", type=_positive, metavar="TOKENS", help="default: 128")
    prune.add_argument("--distill", type=_positive, metavar="STEPS", help="recover by distillation")
    prune.add_argument(
        "--lr", type=_rate, help="of the distillation (1e-3) or of training on a task (2e-5)"
    )
    prune.add_argument("--seed", type=_seed, default=0)
    task = prune.add_argument_group("pruning on a task, where methods may train the model")
    data.add_argument("--task", metavar="NAME", help="a GLUE task: cola, sst2, stsb, qnli, ...")
    task.add_argument(
        "--data-dir", metavar="DIR", help="its JSON lines; by default fetched by datasets"
    )
    task.add_argument("--train-examples", type=_positive, help="the first so many; default: all")
    for phase, what in (
        ("dense", "before anything goes; default: 3 if the model has no head, else 0"),
        ("prune", "while a method that trains decides; default: 2"),
        ("recover", "with the plan decided; default: 1"),
    ):
        task.add_argument(f"--{phase}-epochs", type=_epochs, help=what)
    task.add_argument(
        "--imitate", action="store_true", default=None, help="the dense model's logits, too"
    )
    task.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32")
    task.add_argument(
        "--checkpoints", metavar="DIR", help="where to go on from; default: OUT-checkpoints"
    )

    meta = command("meta-train", "train the scorer of method smp on tasks, without their labels")
    meta.add_argument("--model", required=True, metavar="DIR", help="a transformers model folder")
    meta.add_argument(
        "--tasks", required=True, type=_names, help="GLUE tasks to learn from: mrpc,rte,cola,..."
    )
    meta.add_argument(
        "--out", required=True, metavar="FILE", help="for prune --method smp --option artifact=FILE"
    )
    meta.add_argument(
        "--data-dir", metavar="DIR", help="a folder for each task; by default fetched by datasets"
    )
    meta.add_argument("--steps", type=_positive, default=8000, help="default: %(default)s")
    meta.add_argument("--train-examples", type=_positive, help="the first so many; default: all")
    meta.add_argument("--batch-size", type=_positive, default=60)
    meta.add_argument("--max-length", type=_positive, default=128, metavar="TOKENS")
    meta.add_argument("--seed", type=_seed, default=0)

    measure = command("measure", "time a pruned model folder against a dense one")
    measure.add_argument("model", metavar="DIR")
    measure.add_argument("--baseline", required=True, metavar="DIR", help="the dense model folder")
    measure.add_argument(
        "--shapes", type=_shape, nargs="+", default=[(1, 32), (8, 128)], metavar="BxT"
    )
    measure.add_argument(
        "--min-time", type=_seconds, default=2.0, metavar="SECONDS", help="of sampling a row"
    )
    measure.add_argument("--text", metavar="FILE", help="also compare outputs on this text")

    inspect = command("inspect", "what a model folder has, or a pruned one kept, and why")
    inspect.add_argument("model", metavar="DIR")

    command("methods", "list the pruning methods")
    command("env", "versions, instruction sets, CUDA, devices, threads")
    return top


def settle(options: argparse.Namespace) -> None:
    """Give the options of prune that were left out their defaults. Raises DataError for one that
    was given and would have no effect beside the others."""
    from secateurs.pruning import METHODS, Needs

    needs = METHODS[options.method].needs
    trains = Needs.TRAINING in needs
    reads = bool(needs & (Needs.ACTIVATIONS | Needs.GRADIENTS))
    data, task = bool(options.text or options.data), bool(options.task)
    given = {name for name in (*PRUNE_DEFAULTS, *_OF_A_TASK, "lr") if _given(options, name)}
    epochs = (options.dense_epochs, options.prune_epochs, options.recover_epochs)
    fits = task and any(phase is None or phase > 0 for phase in epochs)
    effects: dict[str, tuple[bool, str]] = {name: (task, "beside --task") for name in _OF_A_TASK}
    effects |= {
        "distill": (not task, "with --text or --data (on a task, --imitate)"),
        "examples": (
            reads and (data or (task and not trains)),
            "with data, for a method that reads some of it",
        ),
        "batch_size": (data or task, "with --text, --data or --task"),
        "max_length": (data or task, "with --text, --data or --task"),
        "lr": (fits or "distill" in given, "with --distill, or epochs on a --task"),
    }
    effects |= {
        name: (fits, "with epochs on a --task") for name in ("imitate", "precision") if task
    }
    for name in sorted(given):
        has_effect, where = effects[name]
        if not has_effect:
            raise DataError(
                f"expected --{name.replace('_', '-')} only {where}: here it would have no effect"
            )
    for name, default in PRUNE_DEFAULTS.items():
        if not _given(options, name):
            setattr(options, name, default)


def method_options(method: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The options of `method` that are given as words. Raises MethodError for an unknown one,
    ArgumentError for a value that it does not take, DataError for one given twice."""
    from secateurs.checks import read_options
    from secateurs.pruning import METHODS, check_option_names, check_options

    words = dict(pairs)
    if len(words) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"expected each --option once, got {twice} twice")
    check_option_names(method, words)
    return check_options(method, read_options(METHODS[method].pruner, words))


def _given(options: argparse.Namespace, name: str) -> bool:
    return getattr(options, name) is not None


def _method(text: str) -> str:
    from secateurs.pruning import METHODS

    if text not in METHODS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(METHODS)}, got {text!r}")
    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _positive(text: str) -> int:
    return _whole(text, 1, LARGEST)


def _seed(text: str) -> int:
    from secateurs.checks import SEEDS

    return _whole(text, 0, SEEDS - 1)


def _whole(text: str, least: int, most: int) -> int:
    # Longer words are not read: Python itself refuses those of thousands of digits.
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most}, got {text[:40]!r}"
        )
    return int(text)


def _epochs(text: str) -> float:
    return _number(text, lambda epochs: 0 <= epochs < 1e6, "a number of at least 0")


def _seconds(text: str) -> float:
    return _number(text, lambda seconds: 0 <= seconds < 1e6, "seconds of at least 0")


def _rate(text: str) -> float:
    return _number(text, lambda rate: 0 < rate < 1e6, "a learning rate above 0")


def _number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text[:40]!r}")
    return value


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    return _positive(batch), _positive(tokens)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value
