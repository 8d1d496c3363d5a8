"""What benchmarks on tasks begin with: a model fine-tuned on a task, and rows that are made once.

The fine-tuned model is kept in a work folder, which benchmarks may share; a training that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.sentences import novel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging

from secateurs.data import text
from secateurs.data.batches import unlabelled
from secateurs.data.tasks import find_task
from secateurs.measurement.environment import device_name, git_commit
from secateurs.measurement.quality import fidelity
from secateurs.measurement.rows import append_rows
from secateurs.ops import build_info
from secateurs.storage.model_folders import (
    open_classifier,
    open_image_processor,
    open_model,
    open_tokenizer,
)
from secateurs.training.task_recipe import Settings, TaskData, evaluate, train

EMBEDDINGS = "embeddings"
"""Names a task without labels: the model as it comes is judged by how near its embeddings stay."""
_HELD_OUT = 400  # sentences that they are judged on


@dataclass
class Dense:
    """A fine-tuned model, with its task.

    Attributes:
        metrics: over the validation examples, the first of which decides.
        per_step: seconds of a step of the fine-tuning.
        work: the folder for all that begins with the model.
    """

    model: nn.Module
    data: TaskData | Novel
    metrics: Mapping[str, float]
    per_step: float
    work: Path

    @property
    def metric(self) -> str:
        return next(iter(self.metrics))

    def score(self, model: nn.Module) -> float:
        """What `model` reaches by the metric that decides."""
        if isinstance(self.data, Novel):
            return fidelity(self.model, model, self.data.held_out()).mean
        return evaluate(model, self.data)[self.metric]


@dataclass
class Novel:
    """Sentences of a novel for an embedding model: all but the last are training examples."""

    tokenizer: Any
    max_length: int
    train: Sequence[str]
    unseen: Sequence[str]

    def batches(self, chosen: Sequence[str], size: int) -> list[dict[str, Tensor]]:
        """Padded batches of sentences of similar lengths."""
        return text.batches(self.tokenizer, chosen, size, self.max_length)

    def held_out(self) -> list[dict[str, Tensor]]:
        """Those that come last, in batches."""
        return self.batches(self.unseen, 32)


class Rows:
    """The rows of a file of JSON lines, told apart by what some names have, if anything."""

    def __init__(self, path: str, *names: str) -> None:
        self._path, self._names = path, names
        lines = Path(path).read_text().splitlines() if Path(path).is_file() else []
        self._known = {self._key(json.loads(line)) for line in lines}

    def __contains__(self, record: Mapping[str, Any]) -> bool:
        return self._key(record) in self._known

    def add(self, record: Mapping[str, Any]) -> None:
        append_rows(self._path, [record])
        self._known.add(self._key(record))

    def _key(self, record: Mapping[str, Any]) -> str:
        return json.dumps({name: record.get(name) for name in self._names}, sort_keys=True)


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add what decides the fine-tuned models, and where rows go; `defaults` by their names."""
    add = parser.add_argument
    add("--data-dir", help="a folder for each task; by default from the hub")
    add("--tasks", type=listed, default=["stsb"], help="names of tasks, with commas between")
    add("--model", default="mini", help="mini, or a model folder")
    add("--train-examples", type=int, default=4000)
    add("--validation-examples", type=int)
    add("--dense-epochs", type=float, default=2)
    add("--lr", type=float, default=1e-4)
    add("--batch-size", type=int, default=16)
    add("--max-length", type=int, default=64)
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of all training")
    add("--freeze-embeddings", action="store_true", help="train the rest, as for many languages")
    add("--threads", type=int)
    add("--work", default="methods-work", help="folder of fine-tuned models and checkpoints")
    add("--json", help="rows, and what is done already")
    parser.set_defaults(**defaults)


def listed(text: str) -> list[str]:
    """Names with commas between them."""
    return text.split(",")


def prepare(options: argparse.Namespace) -> None:
    """Use as many threads as were asked for, and print no more than the benchmark does."""
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def settings_of(options: argparse.Namespace, seed: int = 0) -> Settings:
    return Settings(options.lr, options.batch_size, seed=seed, precision=options.precision)


def task_data(name: str, options: argparse.Namespace) -> TaskData:
    """The splits of a task, encoded for the model."""
    task, folder = find_task(name, options.data_dir), model_folder(options.model)
    is_text = task.main_input == "input_ids"
    return TaskData.read(
        task,
        (open_tokenizer if is_text else open_image_processor)(folder),
        options.data_dir,
        options.max_length,
        options.train_examples,
        options.validation_examples,
    )


def fine_tuned(data: TaskData, options: argparse.Namespace, seed: int = 0) -> Dense:
    """The model fine-tuned on a task, or read as that ended before."""
    task, settings = data.task, settings_of(options, seed)
    model = open_classifier(model_folder(options.model), task.labels, seed, task.head)
    if options.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    work = Path(options.work) / f"{task.name.replace(':', '-')}-{seed}"
    done, state = work / "dense" / "seconds.json", work / "dense" / "model.safetensors"
    if not done.is_file():
        epochs = options.dense_epochs
        seconds = train(model, data, epochs, done.parent, settings, progress=False)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, state)
        done.write_text(json.dumps(seconds / steps_of(data, epochs, options)))
    model.load_state_dict(load_file(state))
    model.eval().requires_grad_(True)
    metrics = evaluate(model, data)
    told = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    print(f"{task.name}, seed {seed}: dense {told}", flush=True)
    return Dense(model, data, metrics, float(json.loads(done.read_text())), work)


def embedding_model(options: argparse.Namespace) -> Dense:
    """The model as it comes, with sentences to judge its embeddings on."""
    folder, lines = model_folder(options.model), novel()
    data = Novel(open_tokenizer(folder), options.max_length, lines[:-_HELD_OUT], lines[-_HELD_OUT:])
    work = Path(options.work) / EMBEDDINGS
    return Dense(open_model(folder).eval(), data, {"cosine": 1.0}, 0.0, work)


def calibration(
    dense: Dense, count: int, batch_size: int, seed: int | None = None
) -> list[dict[str, Tensor]]:
    """Some training examples from anywhere, without their labels; in an order of the `seed`, or of
    their lengths."""
    batches = _of_places(dense, _sample(dense, count, seed or 0), batch_size)
    if seed is not None:
        random.Random(seed).shuffle(batches)
    return batches


def rest_of_calibration(
    dense: Dense, count: int, batch_size: int, seed: int
) -> list[dict[str, Tensor]]:
    """The training examples that `calibration` leaves, without their labels."""
    places = sorted({*range(len(dense.data.train))} - {*_sample(dense, count, seed)})
    return _of_places(dense, places, batch_size)


def _sample(dense: Dense, count: int, seed: int) -> list[int]:
    return random.Random(seed).sample(range(len(dense.data.train)), count)


def _of_places(dense: Dense, places: list[int], batch_size: int) -> list[dict[str, Tensor]]:
    chosen = [dense.data.train[place] for place in places]
    return [unlabelled(batch, dense.model) for batch in dense.data.batches(chosen, batch_size)]


def steps_of(data: TaskData, epochs: float, options: argparse.Namespace) -> int:
    """Steps of so many epochs, at least one."""
    return max(1, round(epochs * -(-len(data.train) // options.batch_size)))


def model_folder(model: str) -> Path:
    """A folder given by its path, or that of all-MiniLM-L6-v2."""
    if model != "mini":
        return Path(model)
    from secateurs.cli import demo

    return demo.model_folder()


def where(options: argparse.Namespace) -> dict[str, Any]:
    """The model, the machine and the versions that rows of the CPU name."""
    return {
        "model": options.model if options.model == "mini" else Path(options.model).name,
        "device": device_name(torch.device("cpu")),
        "isa": build_info()["cpu"]["isa"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": git_commit(),
    }
