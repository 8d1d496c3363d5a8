"""Training that dies half-way: a run goes on only from what it wrote itself and to its end, and
ends in the weights of one that was never stopped; to another run it says no and loses nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.tiny_models import tiny_model
from support.training import classifier, dense_folder, glue_folder, sentences, write
from transformers import TrainerState

import secateurs as sc
from secateurs.cli import main as cli
from secateurs.data.tasks import find_task
from secateurs.errors import CheckpointError
from secateurs.pruning import run_folders
from secateurs.pruning.session import Session
from secateurs.storage.model_folders import open_classifier, open_tokenizer
from secateurs.storage.sentinel import NAME as SENTINEL
from secateurs.training import task_recipe, trainer
from secateurs.training.trainer import STATE, PruningTrainer

KILLED = 9
CHOSEN = {
    "method": "dsp", "budget": "heads=0.5", "dense-epochs": 1, "prune-epochs": 2,
    "recover-epochs": 1, "batch-size": 8, "lr": 1e-3, "seed": 0,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of two threads may differ in their last bit from those of one, and a killed child has
    but one: the others stay in the process that it comes from."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("inputs")
    return {"model": dense_folder(path / "dense"), "data-dir": glue_folder(path / "glue")}


def prune(inputs, out: Path, **changes: object) -> int:
    """The exit status of `secateurs prune-task --task sst2`, as `CHOSEN` but for some changes."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    options = {"task": "sst2", "out": out, **inputs, **CHOSEN, **changed}
    return cli.main(["prune-task", "--no-progress", *(f"--{n}={v}" for n, v in options.items())])


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted(path for path in out.glob("*.safetensors") if path.name != SENTINEL)
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert prune(inputs, out) == cli.OK
    return weights(out)


def killed(work: Callable[[], object], arrange: Callable[[], None]) -> None:
    """Do `work` in a process of its own, which what `arrange` arranges for kills."""
    child = os.fork()
    if not child:
        try:
            arrange()
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == KILLED


def die(*_: object, **__: object) -> None:
    os._exit(KILLED)


def torn_save(name: str, count: int) -> Callable[[], None]:
    """Of the `count`-th file called `name`, half is written."""

    def arrange() -> None:
        whole, left = torch.save, [count]

        def save(value, path, *arguments, **options):
            left[0] -= Path(str(path)).name == name
            if left[0]:
                return whole(value, path, *arguments, **options)
            memory = io.BytesIO()
            whole(value, memory)
            Path(path).write_bytes(memory.getvalue()[: memory.tell() // 2])
            return die()

        torch.save = save

    return arrange


def torn_after(owner: object, method: str, name: str, count: int) -> Callable[[], None]:
    """The file called `name` loses its half once `method` has written it the `count`-th time."""

    def arrange() -> None:
        whole, left = getattr(owner, method), [count]

        def write(self, path, *arguments, **options):
            done = whole(self, path, *arguments, **options)
            file = Path(path) / name if Path(path).is_dir() else Path(path)
            left[0] -= file.name == name and "checkpoint-" in str(file)
            if not left[0]:
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
                die()
            return done

        setattr(owner, method, write)

    return arrange


def at(owner: object, name: str, count: int) -> Callable[[], None]:
    """Death in place of the `count`-th call."""

    def arrange() -> None:
        whole, left = getattr(owner, name), [count]

        def call(*arguments, **options):
            left[0] -= 1
            return whole(*arguments, **options) if left[0] else die()

        setattr(owner, name, call)

    return arrange


MODEL = transformers.PreTrainedModel
# Checkpoints: one of the dense phase, two of pruning, one of recovering.
DEATHS = {
    "in the first model": torn_after(MODEL, "save_pretrained", "model.safetensors", 1),
    "in a later model": torn_after(MODEL, "save_pretrained", "model.safetensors", 3),
    "in an optimizer": torn_save("optimizer.pt", 3),
    "in a scheduler": torn_save("scheduler.pt", 2),
    "in the random state": torn_save("rng_state.pth", 3),
    "in the session": torn_save(STATE, 2),
    "in the trainer's state": torn_after(TrainerState, "save_to_json", "trainer_state.json", 3),
    "before the digests": at(trainer, "seal", 3),
    "before the old one goes": at(trainer, "rotate_checkpoints", 3),
    "before recovering": at(task_recipe, "claim", 3),
    "in the last phase": torn_save("optimizer.pt", 4),
    "before evaluation": at(task_recipe, "evaluate", 2),
}


@pytest.mark.parametrize("death", list(DEATHS))
def test_a_rerun_ends_in_the_same_weights_to_the_bit(inputs, uninterrupted, tmp_path, death):
    out = tmp_path / "out"
    killed(lambda: prune(inputs, out), DEATHS[death])
    assert not out.exists()
    assert prune(inputs, out) == cli.OK
    found = weights(out)
    assert found.keys() == uninterrupted.keys()
    assert all(torch.equal(found[name], uninterrupted[name]) for name in found)


@pytest.mark.parametrize("death", ["in an optimizer", "before the digests"])
def test_the_newest_whole_checkpoint_is_gone_on_from(inputs, tmp_path, monkeypatch, death):
    out = tmp_path / "out"
    killed(lambda: prune(inputs, out), DEATHS[death])
    assert (tmp_path / "out-checkpoints" / "prune" / "checkpoint-10").is_dir()  # the torn one
    begun, whole = [], PruningTrainer.train

    def train(self, resume_from_checkpoint=None):
        begun.append(resume_from_checkpoint and Path(resume_from_checkpoint).name)
        return whole(self, resume_from_checkpoint)

    monkeypatch.setattr(PruningTrainer, "train", train)
    assert prune(inputs, out) == cli.OK
    assert begun == ["checkpoint-5", "checkpoint-5", None]  # dense, prune, recover


@pytest.fixture(scope="module")
def stopped(inputs, tmp_path_factory) -> Path:
    """A folder of checkpoints whose run was killed when it had pruned."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    killed(lambda: prune(inputs, out), at(task_recipe, "claim", 3))
    return out.with_name("out-checkpoints")


LOST = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", STATE,
        "model.safetensors", run_folders.SEAL]  # fmt: skip


@pytest.mark.parametrize("harm", ["gone", "cut", "other"])
@pytest.mark.parametrize("name", LOST)
def test_a_checkpoint_whose_file_is_not_as_written_is_not_gone_on_from(
    stopped, tmp_path, name, harm
):
    checkpoint = tmp_path / "checkpoint-10"
    shutil.copytree(next((stopped / "prune").glob("checkpoint-*")), checkpoint)
    content = (checkpoint / name).read_bytes()
    if harm == "gone":
        (checkpoint / name).unlink()
    elif harm == "cut":
        (checkpoint / name).write_bytes(content[: len(content) // 2])
    else:
        (checkpoint / name).write_bytes(
            b"{}" if name == run_folders.SEAL else content[:-1] + b"\xff"
        )
    assert run_folders.newest_whole(tmp_path) is None


@pytest.mark.parametrize("name", ["optimizer.pt", run_folders.SEAL])
def test_a_run_whose_checkpoint_lost_a_file_ends_in_the_same_weights(
    inputs, uninterrupted, stopped, tmp_path, name
):
    work, out = tmp_path / "work", tmp_path / "out"
    shutil.copytree(stopped, work)
    (checkpoint,) = (work / "prune").glob("checkpoint-*")
    assert run_folders.is_whole(checkpoint)
    (checkpoint / name).unlink()
    assert run_folders.newest_whole(work / "prune") is None
    assert prune(inputs, out, checkpoints=work) == cli.OK
    found = weights(out)
    assert all(torch.equal(found[name], uninterrupted[name]) for name in found)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


OTHERS = {
    "method": {"method": "voita"},
    "budget": {"budget": "heads=0.25"},
    "option": {"option": "cooldown=3"},
    "seed": {"seed": 1},
    "lr": {"lr": 2e-3},
    "batch_size": {"batch-size": 4},
    "max_length": {"max-length": 6},
    "dense_epochs": {"dense-epochs": 2},
    "prune_epochs": {"prune-epochs": 3},
    "recover_epochs": {"recover-epochs": 0},
    "precision": {"training-precision": "bf16"},
    "train_examples, data": {"train-examples": 32},
}


def refused(inputs, work: Path, out: Path, words: str, capsys, **changes: object) -> None:
    before = digests(work)
    capsys.readouterr()
    assert prune(inputs, out, checkpoints=work, **changes) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "expected checkpoints of this run" in error
    assert words in error
    assert error.count("\n") == 1
    assert digests(work) == before
    assert not out.exists()


@pytest.mark.parametrize("differs", list(OTHERS))
def test_another_run_is_refused_and_loses_nothing(inputs, stopped, tmp_path, capsys, differs):
    changes = {name.replace("-", "_"): value for name, value in OTHERS[differs].items()}
    refused(inputs, stopped, tmp_path / "out", differs, capsys, **changes)


def test_another_model_is_refused(inputs, stopped, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(inputs["model"], other)
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[2].output.dense.bias[5] += 1e-3  # one number of 40,000
    model.save_pretrained(other)
    refused({**inputs, "model": other}, stopped, tmp_path / "out", "another model:", capsys)


@pytest.mark.parametrize("split", ["train.jsonl.gz", "validation.jsonl"])
def test_other_data_is_refused(inputs, stopped, tmp_path, capsys, split):
    data = glue_folder(tmp_path / "glue")
    rows = sentences(60)[:40] if split.startswith("train") else sentences(60)[40:]
    rows[3]["label"] = 1 - rows[3]["label"]
    write(data / "sst2" / split, rows)
    refused({**inputs, "data-dir": data}, stopped, tmp_path / "out", "another data:", capsys)


def test_another_version_is_refused(inputs, stopped, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task_recipe, "__version__", "0.0.1")
    refused(inputs, stopped, tmp_path / "out", "another versions:", capsys)


def test_the_same_inputs_in_another_place_are_the_same_run(
    inputs, uninterrupted, stopped, tmp_path
):
    moved = {name: tmp_path / name for name in inputs}
    for name, path in inputs.items():
        shutil.copytree(path, moved[name])
    work, out = tmp_path / "work", tmp_path / "out"
    shutil.copytree(stopped, work)
    told = tmp_path / "told.json"
    assert prune(moved, out, checkpoints=work, json=told) == cli.OK
    found = weights(out)
    assert all(torch.equal(found[name], uninterrupted[name]) for name in found)
    assert not work.exists()


def test_a_folder_with_anything_else_in_it_is_not_taken(inputs, tmp_path, capsys):
    work = tmp_path / "mine"
    work.mkdir()
    (work / "thesis.txt").write_text("years of work")
    assert prune(inputs, tmp_path / "out", checkpoints=work) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert "holds thesis.txt and no run.json" in error
    assert error.count("\n") == 1
    assert [path.name for path in work.iterdir()] == ["thesis.txt"]


def test_a_phase_of_another_run_is_refused_by_the_library_too(inputs, stopped, tmp_path):
    """Those who call `train` themselves have a folder for each phase."""
    tokenizer = open_tokenizer(inputs["model"])
    data = task_recipe.TaskData.read(find_task("sst2"), tokenizer, inputs["data-dir"])
    model = open_classifier(inputs["model"], 2)
    before = digests(stopped)
    with pytest.raises(CheckpointError, match="another epochs, settings"):
        task_recipe.train(model, data, 3, stopped / "dense", task_recipe.Settings(), progress=False)
    assert digests(stopped) == before


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"model": 1})])
def test_a_damaged_record_of_the_run_is_refused(inputs, stopped, tmp_path, capsys, text):
    work = tmp_path / "work"
    shutil.copytree(stopped, work)
    (work / run_folders.RUN).write_text(text)
    before = digests(work)
    assert prune(inputs, tmp_path / "out", checkpoints=work) == cli.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert digests(work) == before


def test_a_run_that_has_no_checkpoint_yet_may_be_another(inputs, tmp_path):
    """A mistyped budget is put right without removing a folder first."""
    out = tmp_path / "out"
    assert prune(inputs, out, budget="heads=0.99", dense_epochs=0) == cli.BAD_INPUT
    assert prune(inputs, out, dense_epochs=0, recover_epochs=0) == cli.OK


def test_a_state_of_another_plan_is_refused():
    model = classifier()
    plans = [
        sc.SparsityPlan({"layers.0.heads": sc.HeadMask(torch.arange(4) != gone)}) for gone in (1, 2)
    ]
    with Session(model, plans[0]) as session:
        state = session.state_dict()
    with Session(model, plans[1]) as session, pytest.raises(CheckpointError, match="with plan"):
        session.load_state_dict(state)
    with Session(model, plans[0]) as session:
        session.load_state_dict(state)


def test_the_trainer_resumes_from_its_last_whole_checkpoint(tmp_path):
    from support.training import trainer as make

    with Session(classifier(), "dsp", budget="heads=0.5") as session:
        settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
        make(session.model, tmp_path, session, **settings).train()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    with Session(classifier(), "dsp", budget="heads=0.5") as session:
        again = make(session.model, tmp_path, session, **settings)
        with pytest.raises(CheckpointError, match="files of it are missing or altered"):
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        before = (tmp_path / "checkpoint-3" / run_folders.SEAL).stat().st_mtime_ns
        again.train(resume_from_checkpoint=True)
        assert session.step == 6
    assert (
        tmp_path / "checkpoint-3" / run_folders.SEAL
    ).stat().st_mtime_ns == before  # not trained again
    assert run_folders.is_whole(tmp_path / "checkpoint-6")


def test_the_last_step_counts_as_a_number_and_only_if_it_is_whole(tmp_path):
    for step in (3, 20, 100):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(str(step))
        run_folders.seal(checkpoint)
    assert run_folders.newest_whole(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / "weights").write_text("torn")
    assert run_folders.newest_whole(tmp_path) == tmp_path / "checkpoint-20"
