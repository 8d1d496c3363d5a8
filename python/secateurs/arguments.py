"""The command line's arguments: what can be asked for, and how its words are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any


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
        "--examples", type=_positive, default=256, help="examples that decide what goes"
    )
    prune.add_argument("--batch-size", type=_positive, default=16)
    prune.add_argument("--max-length", type=_positive, default=128, metavar="TOKENS")
    prune.add_argument(
        "--distill", type=_positive, default=0, metavar="STEPS", help="recover by distillation"
    )
    prune.add_argument(
        "--lr", type=float, help="of the distillation (1e-3) or of training on a task (2e-5)"
    )
    prune.add_argument("--seed", type=int, default=0)
    task = prune.add_argument_group("pruning on a task, where methods may train the model")
    data.add_argument("--task", metavar="NAME", help="a GLUE task: cola, sst2, stsb, qnli, ...")
    task.add_argument(
        "--data-dir", metavar="DIR", help="its JSON lines; by default fetched by datasets"
    )
    task.add_argument("--train-examples", type=_positive, help="the first so many; default: all")
    for phase, epochs, what in (
        ("dense", None, "before anything goes; default: 3 if the model has no head, else 0"),
        ("prune", 2.0, "while a method that trains decides; default: 2"),
        ("recover", 1.0, "with the plan decided; default: 1"),
    ):
        task.add_argument(f"--{phase}-epochs", type=_epochs, default=epochs, help=what)
    task.add_argument("--imitate", action="store_true", help="the dense model's logits, too")
    task.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
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
    meta.add_argument("--seed", type=int, default=0)

    measure = command("measure", "time a pruned model folder against a dense one")
    measure.add_argument("model", metavar="DIR")
    measure.add_argument("--baseline", required=True, metavar="DIR", help="the dense model folder")
    measure.add_argument(
        "--shapes", type=_shape, nargs="+", default=[(1, 32), (8, 128)], metavar="BxT"
    )
    measure.add_argument(
        "--min-time", type=float, default=2.0, metavar="SECONDS", help="of sampling a row"
    )
    measure.add_argument("--text", metavar="FILE", help="also compare outputs on this text")

    inspect = command("inspect", "what a model folder has, or a pruned one kept, and why")
    inspect.add_argument("model", metavar="DIR")

    command("methods", "list the pruning methods")
    command("env", "versions, instruction sets, CUDA, devices, threads")
    return top


def _method(text: str) -> str:
    from secateurs.pruning import METHODS

    if text not in METHODS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(METHODS)}, got {text!r}")
    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _epochs(text: str) -> float:
    try:
        epochs = float(text)
    except ValueError:
        epochs = -1.0
    if not 0 <= epochs < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return epochs


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    return _positive(batch), _positive(tokens)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value
