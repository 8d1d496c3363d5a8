"""The command `secateurs`: arguments in, calls, tables and JSON out; the work is elsewhere."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateurs.cli.arguments import method_options, parser, settle
from secateurs.errors import DataError, MethodError, SecateursError

# argparse answers a command line it cannot read with 2, and we one whose input we cannot use.
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
# Arguments that decide where a run is found and what it tells, not how it ends; of the model and
# the data what is in them does.
_WITHOUT_EFFECT = {
    "model", "data", "data_dir", "out", "checkpoints", "json", "debug", "progress", "command", "run"
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only on success."""
    options = parser(_COMMANDS).parse_args(arguments)
    try:
        _check_json(options.json)
        status, result = options.run(options)
        if options.json:
            from secateurs.cli.report import write_json

            write_json(options.json, result)
    except SecateursError as error:
        if options.debug:
            raise
        _tell(options, str(error))
        return BAD_INPUT
    except OSError as error:  # of a path, where nobody foresaw it
        if options.debug:
            raise
        from secateurs.checks import first_line

        _tell(options, first_line(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def _demo(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.cli import demo

    _quiet()
    settings = demo.QUICK if options.quick else demo.Settings()
    result = demo.run(options.out, settings, progress=options.progress)
    print(f"\n{demo.summary(result)}\n\n{options.out}: report.json, report.png, model/")
    return (OK if result["ok"] else FAILED), result


def _prune(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.architectures.sites import find_sites
    from secateurs.conversion.builder import convert
    from secateurs.data.text import batches, read_examples, read_text
    from secateurs.pruning import METHODS, Budget, Needs, make_pruner, prune
    from secateurs.storage.checkpoint import save
    from secateurs.storage.model_folders import open_model
    from secateurs.training.distillation import distill
    from secateurs.training.task_recipe import check_pruning

    _quiet()
    settle(options)
    out = _new_directory(options.out)
    chosen = method_options(options.method, options.option)
    needs = METHODS[options.method].needs
    make_pruner(options.method, **chosen).check(Budget.parse(options.budget))
    if options.task:
        return _prune_on_task(options, out, chosen)
    if Needs.TRAINING in needs:
        raise MethodError(f"expected --task, on which {options.method} trains the model, got none")
    reads_data = needs & (Needs.ACTIVATIONS | Needs.GRADIENTS)
    rows: Sequence[Any] = ()
    if options.text or options.data:
        rows = read_text(options.text) if options.text else read_examples(options.data)
    elif reads_data or options.distill:
        who = f"method {options.method}" if reads_data else "--distill"
        raise DataError(f"expected --text or --data, which {who} needs, got neither")
    model = open_model(options.model)
    check_pruning(model, options.method, options.budget, chosen, seed=options.seed)
    tokenizer, training = None, []
    if rows:
        tokenizer = _tokenizer(options, model)
        training = batches(tokenizer, rows, options.batch_size, options.max_length)
        random.Random(options.seed).shuffle(training)
    plan = prune(
        model,
        training[: -(-options.examples // options.batch_size)],
        method=options.method,
        budget=options.budget,
        seed=options.seed,
        progress=options.progress,
        **chosen,
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


def _prune_on_task(
    options: argparse.Namespace, out: Path, chosen: dict[str, Any]
) -> tuple[int, Any]:
    import torch

    from secateurs.architectures.sites import find_sites
    from secateurs.cli.report import table
    from secateurs.conversion.builder import convert
    from secateurs.data.glue import find_task
    from secateurs.pruning import METHODS, Needs
    from secateurs.pruning.run_folders import claim, model_digest, values_digest
    from secateurs.storage.checkpoint import save
    from secateurs.storage.model_folders import has_classifier, open_classifier
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

    task, method = find_task(options.task), METHODS[options.method]
    work, progress = _work(options, out), options.progress
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise DataError("expected a GPU to train in fp16 on, got none: bf16 needs none")
    if Needs.TRAINING in method.needs and options.prune_epochs <= 0:
        raise DataError(f"expected epochs for {method.name} to prune in, got 0")
    # What the task knows and the method asks.
    chosen = ({"pair": task.pair} if "pair" in method.options else {}) | chosen
    model = open_classifier(options.model, task.labels, options.seed)
    sites = find_sites(model)
    check_pruning(model, method.name, options.budget, chosen, seed=options.seed)
    tokenizer = _tokenizer(options, model)
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
    steps = steps_of(data, options.prune_epochs, options.batch_size)
    check_pruning(model, method.name, options.budget, chosen, seed=options.seed, steps=steps)
    claim(
        work,
        {
            **{k: repr(v) for k, v in sorted(vars(options).items()) if k not in _WITHOUT_EFFECT},
            "model": model_digest(model),
            "data": values_digest([*data.train, "validation", *data.validation]),
            "versions": versions(),
        },
    )
    seconds = {}
    before = options.dense_epochs
    if before is None:
        before = 0.0 if has_classifier(options.model) else 3.0
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
        options=chosen,
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


def _meta_train(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.architectures.sites import find_sites
    from secateurs.data.glue import find_task
    from secateurs.pruning.methods.smp import meta_train, save_scorer
    from secateurs.storage.model_folders import open_model
    from secateurs.training.task_recipe import meta_task

    _quiet()
    out = Path(options.out)
    if out.exists() or not _may_write(out.absolute().parent):
        raise DataError(f"expected --out to be a new file in an existing folder, got {out}")
    tasks = [find_task(name) for name in options.tasks]
    model = open_model(options.model)
    find_sites(model)
    tokenizer = _tokenizer(options, model)
    learnt = [
        meta_task(
            task,
            tokenizer,
            options.data_dir,
            options.max_length,
            options.train_examples,
            options.batch_size,
            options.seed,
        )
        for task in tasks
    ]
    scorer = meta_train(
        model, learnt, steps=options.steps, seed=options.seed, progress=options.progress
    )
    save_scorer(scorer, out)
    print(f"saved to {out}")
    return OK, {"out": str(out), "tasks": options.tasks, "steps": options.steps}


def _new_directory(path: str) -> Path:
    out = Path(path)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"expected --out to be a new or empty directory, got {out}")
    _check_room("--out", out)
    return out


def _work(options: argparse.Namespace, out: Path) -> Path:
    """The folder of the checkpoints, which is removed in the end."""
    work = Path(options.checkpoints or f"{out}-checkpoints")
    kept, removed = out.resolve(), work.resolve()
    if kept.is_relative_to(removed) or removed.is_relative_to(kept):
        raise DataError(f"expected --checkpoints apart from --out, got {work} and {out}")
    _check_room("--checkpoints", work)
    return work


def _check_room(option: str, path: Path) -> None:
    """Raise DataError unless a directory can be made at `path`."""
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not _may_write(above):
        raise DataError(f"expected {option} where a directory can be made, got {path}")


def _tokenizer(options: argparse.Namespace, model: Any) -> Any:
    """The tokenizer of `model`, made fit for it; a length beyond its positions is cut, and told."""
    from secateurs.data.text import check_has_files, fit_tokenizer
    from secateurs.storage.model_folders import open_tokenizer

    tokenizer = open_tokenizer(options.model)
    check_has_files(tokenizer, options.model)
    most = fit_tokenizer(tokenizer, model, options.max_length)
    if most < options.max_length:
        _tell(options, f"the model reads {most} tokens, longer texts are cut to them")
        options.max_length = most
    return tokenizer


def _print_density(density: dict[str, float], out: Path) -> None:
    from secateurs.cli.report import table

    rows = [{"part": part, "kept": kept} for part, kept in density.items()]
    print(table(rows, {"part": "part", "kept": "kept:.1%"}))
    print(f"\nsaved to {out}")


def _measure(options: argparse.Namespace) -> tuple[int, Any]:
    from dataclasses import asdict

    from secateurs.cli.report import speed_table
    from secateurs.data.text import batches, read_text
    from secateurs.measurement.quality import fidelity, speed
    from secateurs.storage.model_folders import open_model

    _quiet()
    rows_of_text = read_text(options.text) if options.text else []
    model, dense = open_model(options.model), open_model(options.baseline)
    found: list[Any] = []
    if rows_of_text:
        reading = argparse.Namespace(command="measure", model=options.baseline, max_length=128)
        tokenizer = _tokenizer(reading, dense)
        found = batches(tokenizer, rows_of_text, 32, reading.max_length)
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
    if found:
        kept = fidelity(dense, model, found)
        result["cosine"] = asdict(kept)
        print(
            f"\ncosine to the baseline: mean {kept.mean:.4f}, worst 5% {kept.worst_twentieth:.4f}"
        )
    return OK, result


def _inspect(options: argparse.Namespace) -> tuple[int, Any]:
    from dataclasses import asdict

    from secateurs.architectures.sites import find_sites
    from secateurs.cli.report import LAYER_COLUMNS, layers_kept, table
    from secateurs.conversion.report import conversion_of, explain
    from secateurs.plan import SparsityPlan
    from secateurs.storage.model_folders import is_pruned, open_model

    _quiet()
    model = open_model(options.model)
    if is_pruned(options.model):
        record = conversion_of(model)
        sites, plan, decisions = record.sites, record.plan, explain(model)
    else:
        sites, plan, decisions = find_sites(model), SparsityPlan(), []
    layers = layers_kept(sites, plan)
    print(f"{options.model}: {type(model).__name__}, family {sites.architecture.model_type}\n")
    print(table(layers, LAYER_COLUMNS))
    if decisions:
        print(f"\n{decisions}")
    return OK, {
        "model": type(model).__name__,
        "family": sites.architecture.model_type,
        "layers": layers,
        "density": sites.density(plan),
        "notes": dict(plan.notes),
        "decisions": [asdict(d) for d in decisions],
    }


def _methods(options: argparse.Namespace) -> tuple[int, Any]:
    from secateurs.cli.report import table
    from secateurs.pruning import METHODS

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
    from secateurs.measurement.environment import env_report, format_report

    found = env_report()
    print(format_report(found))
    return OK, found


def _check_json(path: str | None) -> None:
    """Before minutes of work, not after."""
    if path is None:
        return
    if not _may_write(Path(path).absolute().parent):
        raise DataError(f"expected --json in an existing folder that can be written, got {path}")
    if Path(path).is_dir():
        raise DataError(f"expected --json to be a file, got the folder {path}")


def _may_write(folder: Path) -> bool:
    """Whether files can be made in a folder: only trying tells, for permissions are not all."""
    try:
        with tempfile.TemporaryDirectory(prefix=".secateurs-", dir=folder):
            return folder.is_dir()
    except (OSError, ValueError):
        return False


def _tell(options: argparse.Namespace, sentence: str) -> None:
    print(f"secateurs {options.command}: {sentence}", file=sys.stderr)


def _quiet() -> None:
    """transformers tells about every weight it reads; our own progress bars are enough."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


_COMMANDS = {
    "demo": _demo,
    "prune": _prune,
    "meta-train": _meta_train,
    "measure": _measure,
    "inspect": _inspect,
    "methods": _methods,
    "env": _env,
}

if __name__ == "__main__":
    sys.exit(main())
