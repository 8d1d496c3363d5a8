"""The command `secateurs`: arguments in, calls, tables and JSON out; the work is elsewhere."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateurs.errors import DataError, SecateursError

# argparse answers a command line it cannot read with 2, and we one whose input we cannot use.
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only on success."""
    options = _parser().parse_args(arguments)
    try:
        _check_writable(options.json)
        status, result = options.run(options)
        if options.json:
            from secateurs.report import write_json

            write_json(options.json, result)
    except SecateursError as error:
        if options.debug:
            raise
        print(f"secateurs {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def _demo(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs import demo

    _quiet()
    settings = demo.QUICK if options.quick else demo.Settings()
    result = demo.run(options.out, settings, progress=options.progress)
    print(f"\n{demo.summary(result)}\n\n{options.out}: report.json, report.png, model/")
    return (OK if result["ok"] else FAILED), result


def _prune(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.checkpoint import save
    from secateurs.convert import convert
    from secateurs.pretrained import open_model, open_tokenizer
    from secateurs.pruning import METHODS, Needs, prune
    from secateurs.sites import find_sites
    from secateurs.text import batches, read_examples, read_text
    from secateurs.training import distill

    _quiet()
    out = _new_directory(options.out)
    if options.task:
        return _prune_on_task(options, out)
    model = open_model(options.model)
    tokenizer, training = None, []
    if options.text or options.data:
        tokenizer = open_tokenizer(options.model)
        rows = read_text(options.text) if options.text else read_examples(options.data)
        training = batches(tokenizer, rows, options.batch_size, options.max_length)
        random.Random(options.seed).shuffle(training)
    reads_data = METHODS[options.method].needs & (Needs.ACTIVATIONS | Needs.GRADIENTS)
    if not training and (reads_data or options.distill):
        who = f"method {options.method}" if reads_data else "--distill"
        raise DataError(f"expected --text or --data, which {who} needs, got neither")
    plan = prune(
        model,
        training[: -(-options.examples // options.batch_size)],
        method=options.method,
        budget=options.budget,
        seed=options.seed,
        progress=options.progress,
        **dict(options.option),
    )
    recovered = model
    if options.distill:
        recovered = distill(
            model,
            plan,
            training,
            steps=options.distill,
            lr=options.lr or 1e-3,
            seed=options.seed,
            progress=options.progress,
        )
    save(convert(recovered, plan), out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    density = find_sites(model).density(plan)
    _print_density(density, out)
    return OK, {
        "out": str(out),
        "method": options.method,
        "budget": options.budget,
        "density": density,
    }


def _prune_on_task(options: argparse.Namespace, out: Path) -> tuple[int, Any]:
    from secateurs.checkpoint import save
    from secateurs.convert import convert
    from secateurs.pretrained import open_classifier, open_tokenizer
    from secateurs.recipe import Settings, TaskData, evaluate, prune_on_task, train
    from secateurs.report import table
    from secateurs.sites import find_sites
    from secateurs.tasks import find_task
    from secateurs.trainer import Distillation

    task, tokenizer = find_task(options.task), open_tokenizer(options.model)
    model = open_classifier(options.model, task.labels, options.seed)
    sites = find_sites(model)
    data = TaskData.read(
        task, tokenizer, options.data_dir, options.max_length, options.train_examples
    )
    settings = Settings(
        lr=options.lr or 2e-5,
        batch_size=options.batch_size,
        seed=options.seed,
        precision=options.precision,
        distillation=Distillation() if options.imitate else None,
    )
    work, progress = Path(options.checkpoints or f"{out}-checkpoints"), options.progress
    seconds = {}
    if options.dense_epochs:
        seconds["dense"] = train(
            model, data, options.dense_epochs, work / "dense", settings, progress=progress
        )
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
        options=dict(options.option),
    )
    fast = convert(outcome.model, outcome.plan)
    converted = evaluate(fast, data)
    save(fast, out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(work, ignore_errors=True)
    seconds |= outcome.seconds
    rows = [
        {"metric": name, "dense": dense[name], "pruned": outcome.metrics[name], "saved": value}
        for name, value in converted.items()
    ]
    columns = {"metric": "metric"} | {k: f"{k}:.4f" for k in ("dense", "pruned", "saved")}
    print(f"{table(rows, columns)}\n")
    print("seconds: " + ", ".join(f"{phase} {s:.0f}" for phase, s in seconds.items()) + "\n")
    density = sites.density(outcome.plan)
    _print_density(density, out)
    return OK, {
        "out": str(out),
        "task": task.name,
        "method": options.method,
        "budget": options.budget,
        "metrics": {"dense": dense, "pruned": outcome.metrics, "saved": converted},
        "seconds": seconds,
        "density": density,
    }


def _new_directory(path: str) -> Path:
    out = Path(path)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"expected --out to be a new or empty directory, got {out}")
    return out


def _print_density(density: dict[str, float], out: Path) -> None:
    from secateurs.report import table

    rows = [{"part": part, "kept": kept} for part, kept in density.items()]
    print(table(rows, {"part": "part", "kept": "kept:.1%"}))
    print(f"\nsaved to {out}")


def _measure(options: argparse.Namespace) -> tuple[int, Any]:
    from dataclasses import asdict

    from secateurs.evaluation import fidelity, speed
    from secateurs.pretrained import open_model, open_tokenizer
    from secateurs.report import speed_table
    from secateurs.text import batches, read_text

    _quiet()
    model, dense = open_model(options.model), open_model(options.baseline)
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
    if options.text:
        found = batches(open_tokenizer(options.baseline), read_text(options.text), 32, 128)
        kept = fidelity(dense, model, found)
        result["cosine"] = asdict(kept)
        print(
            f"\ncosine to the baseline: mean {kept.mean:.4f}, worst 5% {kept.worst_twentieth:.4f}"
        )
    return OK, result


def _inspect(options: argparse.Namespace) -> tuple[int, Any]:
    from dataclasses import asdict

    from secateurs.convert import conversion_of, explain
    from secateurs.plan import SparsityPlan
    from secateurs.pretrained import is_pruned, open_model
    from secateurs.report import LAYER_COLUMNS, layers_kept, table
    from secateurs.sites import find_sites

    _quiet()
    model = open_model(options.model)
    if is_pruned(options.model):
        record = conversion_of(model)
        sites, plan, decisions = record.sites, record.plan, explain(model)
    else:
        sites, plan, decisions = find_sites(model), SparsityPlan(), []
    layers = layers_kept(sites, plan)
    print(f"{options.model}: {type(model).__name__}, family {sites.family.model_type}\n")
    print(table(layers, LAYER_COLUMNS))
    if decisions:
        print(f"\n{decisions}")
    return OK, {
        "model": type(model).__name__,
        "family": sites.family.model_type,
        "layers": layers,
        "density": sites.density(plan),
        "notes": dict(plan.notes),
        "decisions": [asdict(d) for d in decisions],
    }


def _methods(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.pruning import METHODS
    from secateurs.report import table

    rows = [
        {
            "name": method.name,
            "removes": ", ".join(sorted(method.produces)),
            "needs": ", ".join(sorted(flag.name.lower() for flag in method.needs if flag.name))
            or "nothing",
            "summary": method.summary,
        }
        for method in METHODS.values()
    ]
    print(table(rows, {key: key for key in rows[0]}))
    return OK, rows


def _env(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.environment import env_report, format_report

    found = env_report()
    print(format_report(found))
    return OK, found


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", metavar="FILE", help="also write the result to this file")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--no-progress", dest="progress", action="store_false", help="no progress bars"
    )
    parser = argparse.ArgumentParser(
        prog="secateurs", description="Prune trained Transformers and run them faster."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "prune a real model, measure it, reload it (about 4 minutes)")
    demo.add_argument("--out", default="secateurs-demo", metavar="DIR", help="default: %(default)s")
    demo.add_argument("--quick", action="store_true", help="a short form, under a minute")

    prune = command("prune", _prune, "prune a model folder and save the fast model")
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
        ("dense", 0.0, "before anything goes"),
        ("prune", 2.0, "while a method that trains decides"),
        ("recover", 1.0, "with the plan decided"),
    ):
        task.add_argument(
            f"--{phase}-epochs", type=_epochs, default=epochs, help=f"{what}; default: %(default)g"
        )
    task.add_argument("--imitate", action="store_true", help="the dense model's logits, too")
    task.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    task.add_argument(
        "--checkpoints", metavar="DIR", help="where to go on from; default: OUT-checkpoints"
    )

    measure = command("measure", _measure, "time a pruned model folder against a dense one")
    measure.add_argument("model", metavar="DIR")
    measure.add_argument("--baseline", required=True, metavar="DIR", help="the dense model folder")
    measure.add_argument(
        "--shapes", type=_shape, nargs="+", default=[(1, 32), (8, 128)], metavar="BxT"
    )
    measure.add_argument(
        "--min-time", type=float, default=2.0, metavar="SECONDS", help="of sampling a row"
    )
    measure.add_argument("--text", metavar="FILE", help="also compare outputs on this text")

    inspect = command("inspect", _inspect, "what a model folder has, or a pruned one kept, and why")
    inspect.add_argument("model", metavar="DIR")

    command("methods", _methods, "list the pruning methods")
    command("env", _env, "versions, instruction sets, CUDA, devices, threads")
    return parser


def _method(text: str) -> str:
    from secateurs.pruning import METHODS

    if text not in METHODS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(METHODS)}, got {text!r}")
    return text


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


def _check_writable(path: str | None) -> None:
    """Before minutes of work, not after."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise DataError(f"expected --json in an existing folder, got {path}")


def _quiet() -> None:
    """transformers tells about every weight it reads; our own progress bars are enough."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
