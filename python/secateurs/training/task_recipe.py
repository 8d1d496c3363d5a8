"""A task from data to a pruned model: fine-tune, prune while or before training, recover, judge."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PrinterCallback, TrainingArguments

from secateurs import __version__
from secateurs.architectures.sites import find_sites
from secateurs.data.base import IGNORED, Task
from secateurs.data.batches import to_device
from secateurs.errors import DataError
from secateurs.plan import SparsityPlan
from secateurs.pruning import METHODS, Budget, Needs, make_pruner, prune
from secateurs.pruning.methods.smp import MetaTask
from secateurs.pruning.run_folders import claim, model_digest, newest_whole, values_digest
from secateurs.pruning.session import Session
from secateurs.reconstruction import refit
from secateurs.training.trainer import Distillation, PruningTrainer


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        lr: peak learning rate, after which it falls linearly to zero, without warm-up.
        precision: "fp32", "bf16" or "fp16", the latter two by autocast.
        distillation: what of the dense model to imitate while pruning and recovering; None for
            labels alone.
    """

    lr: float = 2e-5
    batch_size: int = 32
    max_length: int = 128
    seed: int = 0
    precision: str = "fp32"
    distillation: Distillation | None = None


@dataclass
class TaskData:
    """The encoded splits of one task, by the tokenizer or the image processor of the model."""

    task: Task
    processor: Any
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    @classmethod
    def read(
        cls,
        task: Task,
        processor: Any,
        directory: str | Path | None = None,
        max_length: int = 128,
        train_examples: int | None = None,
        validation_examples: int | None = None,
    ) -> TaskData:
        """Read and encode both splits; of each the first so many examples, or all."""
        splits = []
        for split, most in (("train", train_examples), ("validation", validation_examples)):
            rows = task.read(split, directory)[:most]
            splits.append(task.encode(processor, rows, max_length))
        return cls(task, processor, *splits)

    def batches(self, split: list[dict[str, Any]], size: int) -> list[dict[str, torch.Tensor]]:
        """Padded batches of examples of similar lengths."""
        order = sorted(split, key=lambda example: len(example.get("input_ids", ())))
        return [self.collate(order[i : i + size]) for i in range(0, len(order), size)]

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One padded batch of examples."""
        return self.task.collate(self.processor, examples)


@dataclass
class Outcome:
    """The result of pruning on a task.

    Attributes:
        model: dense in form; its weights were trained for `plan`, which removes nothing of it yet.
        metrics: of the model with the plan, over the whole validation split.
        seconds: of training, by phase.
    """

    model: nn.Module
    plan: SparsityPlan
    metrics: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)


@torch.inference_mode()
def evaluate(model: nn.Module, data: TaskData, batch_size: int = 64) -> dict[str, float]:
    """Every metric of the task over the whole validation split, in evaluation mode."""
    was_training = model.training
    model.eval()
    logits, labels = [], []
    for batch in data.batches(data.validation, batch_size):
        wanted = batch.pop("labels")
        given = model(**to_device(batch, model)).logits.float().cpu()
        if wanted.dim() > 1:  # one for each token, some of which do not count
            given, wanted = given[wanted != IGNORED], wanted[wanted != IGNORED]
        labels.append(wanted.numpy())
        logits.append(given.numpy())
    model.train(was_training)
    return data.task.evaluate(np.concatenate(logits), np.concatenate(labels))


def train(
    model: nn.Module,
    data: TaskData,
    epochs: float,
    directory: str | Path,
    settings: Settings,
    *,
    session: Session | None = None,
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> float:
    """Fine-tune `model` in place, driving `session` if there is one; the seconds it took.

    Checkpoints go to `directory` after each epoch; from the last whole one there training goes on.

    Raises CheckpointError if `directory` holds those of a training with another input.
    """
    claim(directory, _inputs(model, data, epochs, settings, session, teacher))
    gpu, has_lengths = torch.cuda.is_available(), data.task.main_input == "input_ids"
    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=epochs,
        learning_rate=settings.lr,
        per_device_train_batch_size=settings.batch_size,
        seed=settings.seed,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        weight_decay=0.0,
        train_sampling_strategy="group_by_length" if has_lengths else "random",
        report_to="none",
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        disable_tqdm=not progress,
        logging_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
    )
    trainer = PruningTrainer(
        model,
        arguments,
        data_collator=data.collate,
        train_dataset=data.train,
        session=session,
        teacher=teacher,
        distillation=settings.distillation,
    )
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    known = newest_whole(directory)
    trainer.train(resume_from_checkpoint=None if known is None else str(known))
    return time.perf_counter() - start


def check_pruning(
    model: nn.Module,
    method: str,
    budget: Budget | str,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    steps: int | None = None,
) -> None:
    """Raise what `prune` or a `Session` would for this model before it reads any data; for a method
    that trains, also what does not fit into `steps`."""
    pruner = make_pruner(method, **options)
    pruner.start(model, find_sites(model), Budget.of(budget), seed)
    if steps is not None and Needs.TRAINING in pruner.needs:
        pruner.begin(steps)


def steps_of(data: TaskData, epochs: float, batch_size: int) -> int:
    """Optimizer steps of so many epochs."""
    return math.ceil(epochs * math.ceil(len(data.train) / batch_size))


def versions() -> str:
    """Name the versions of all that trains: another one may not end in the same weights."""
    return (
        f"secateurs {__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def _inputs(
    model: nn.Module,
    data: TaskData,
    epochs: float,
    settings: Settings,
    session: Session | None,
    teacher: nn.Module | None,
) -> dict[str, str]:
    """All that decides how a training ends."""
    return {
        "model": model_digest(model),
        "data": values_digest([data.task.decides(data.processor), *data.train]),
        "epochs": repr(float(epochs)),
        "settings": repr(settings),
        "session": repr(None if session is None else session.run()),
        "teacher": "" if teacher is None else model_digest(teacher),
        "versions": versions(),
    }


def prune_on_task(
    model: nn.Module,
    data: TaskData,
    method: str,
    budget: Budget | str,
    directory: str | Path,
    settings: Settings,
    *,
    prune_epochs: float = 2,
    recover_epochs: float = 1,
    examples: int = 512,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
    refits: bool = True,
    before_recovery: Callable[[nn.Module, SparsityPlan], None] | None = None,
) -> Outcome:
    """Prune a fine-tuned `model`, which is trained further in place.

    A method that trains does so for `prune_epochs`, and its plan recovers for `recover_epochs`; the
    plan of a method that does not, made on `examples` of the training split, recovers for both. So
    methods compare at equal epochs.

    Args:
        directory: for checkpoints; whole ones of the same run are gone on from.
        refits: fit what the plan of a method that does not train leaves to the dense model on the
            same examples, as `refit`, before it recovers.
        before_recovery: called with the model, dense in form, and its plan before that recovers;
            it must leave the model as it is.

    Raises as `Session`, `prune`, `refit` and `train`, DataError for no epochs where a method needs
    them.
    """
    trains = Needs.TRAINING in METHODS[method].needs if method in METHODS else False
    if trains and prune_epochs <= 0:
        raise DataError(f"expected epochs for {method} to prune in, got {prune_epochs}")
    teacher = None if settings.distillation is None else copy.deepcopy(model)
    directory, seconds = Path(directory), {}
    common: dict[str, Any] = {"teacher": teacher, "progress": progress}
    if trains:
        chosen = dict(options or {})
        with Session(model, method, budget=budget, seed=settings.seed, **chosen) as session:
            seconds["prune"] = train(
                model, data, prune_epochs, directory / "prune", settings, session=session, **common
            )
        plan, left = session.plan, recover_epochs
    else:
        start = time.perf_counter()
        some = data.batches(data.train[:examples], settings.batch_size)
        plan = prune(
            model,
            some,
            method=method,
            budget=budget,
            seed=settings.seed,
            progress=progress,
            **(options or {}),
        )
        seconds["prune"] = time.perf_counter() - start
        if refits:
            start = time.perf_counter()
            refit(model, plan, some, inplace=True, progress=progress)
            seconds["refit"] = time.perf_counter() - start
        left = prune_epochs + recover_epochs
    if before_recovery is not None:
        before_recovery(model, plan)
    with Session(model, plan, seed=settings.seed) as session:
        if left > 0:
            seconds["recover"] = train(
                model, data, left, directory / "recover", settings, session=session, **common
            )
        metrics = evaluate(model, data)
    return Outcome(model.eval(), plan, metrics, seconds)


def meta_task(
    task: Task,
    tokenizer: Any,
    directory: str | Path | None = None,
    max_length: int = 128,
    train_examples: int | None = None,
    batch_size: int = 60,
    seed: int = 0,
) -> MetaTask:
    """The inputs of a task's training split for `pruning.smp.meta_train`, shuffled, in padded
    batches."""
    rows = task.read("train", directory)[:train_examples]
    examples = task.encode(tokenizer, rows, max_length)
    order = np.random.default_rng(seed).permutation(len(examples))
    batches = [
        task.collate(tokenizer, [examples[j] for j in order[i : i + batch_size]])
        for i in range(0, len(order), batch_size)
    ]
    return MetaTask(batches, task.pair)
