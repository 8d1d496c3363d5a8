"""Saves that die half-way, or meet others: whenever a directory is read, it holds one whole model,
the old one or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model

from secateurs import HeadMask, SparsityPlan, convert, files, load, save
from secateurs.errors import CheckpointError
from secateurs.storage.model_card import NAME as CARD
from secateurs.storage.sentinel import NAME as SENTINEL

HERE = Path(__file__)
ALWAYS = ("config.json", SENTINEL, CARD)  # files of every saved folder
FORMAT_1 = HERE.parents[1] / "fixtures" / "format_1"
IDS = torch.arange(3, 11)[None]


def model(which: str) -> torch.nn.Module:
    """Two models that differ in what files they have, and in what these hold."""
    keep = torch.tensor([True, False] if which == "old" else [True, True])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "vocab_size": 40, "max_position_embeddings": 16}
    return convert(tiny_model("bert", **sizes), SparsityPlan({"layers.0.heads": HeadMask(keep)}))


def said(of: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return of(IDS)[0]


def die_at(number: int) -> None:
    """Let this process die, as by kill -9, before the step of that number, or half-way through it
    where it writes a file."""
    taken = 0

    def dying(step, half=lambda *_: None):
        def run(*args, **kwargs):
            nonlocal taken
            taken += 1
            if taken == number:
                half(*args)
                os._exit(9)
            return step(*args, **kwargs)

        return run

    def half_text(path, text):
        path.open("w").write(text[: len(text) // 2])

    def half_tensors(_, path):
        Path(path).write_bytes(b"half")

    os.fsync = dying(os.fsync)
    for name in ("replace", "unlink", "mkdir"):
        setattr(Path, name, dying(getattr(Path, name)))
    Path.write_text = dying(Path.write_text, half_text)
    for module in (
        sys.modules["secateurs.storage.checkpoint"],
        sys.modules["secateurs.plan.sparsity_plan"],
    ):
        module.save_file = dying(module.save_file, half_tensors)


def run(job: str, *args: object) -> subprocess.Popen:
    command = [sys.executable, str(HERE), job, *map(str, args)]
    tests = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(tests)})


@pytest.mark.parametrize("before", ["old", "format 1", "nothing"])
def test_killed_at_every_step(before, tmp_path):
    """Every step of a save is tried as the last one, until a save survives them all."""
    converted, steps = {which: model(which) for which in ("old", "new")}, 0
    new = said(converted["new"])
    while True:
        directory = tmp_path / str(steps)
        if before == "old":
            save(converted["old"], directory)
        elif before == "format 1":
            directory.mkdir()
            for path in FORMAT_1.iterdir():
                (directory / path.name).write_bytes(path.read_bytes())
        old = said(load(directory)) if before != "nothing" else None
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # those of the parent are not here
            die_at(steps + 1)
            save(converted["new"], directory)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if old is None and not (directory / "config.json").exists():
            assert code == 9
        else:
            got = said(load(directory))
            assert torch.equal(got, new) or (code == 9 and torch.equal(got, old))
        save(converted["new"], directory)  # goes through, and removes what the dead one left
        assert torch.equal(said(load(directory)), new)
        block = json.loads((directory / "config.json").read_text())["secateurs"]
        assert {p.name for p in directory.iterdir()} == {*ALWAYS, *block["sha256"]}
        if code == 0:
            break
        steps += 1
    assert steps >= 10


@pytest.mark.skipif(files.fcntl is None, reason="no locks here")
def test_two_savers_and_a_reader(tmp_path):
    directory = tmp_path / "m"
    save(model("old"), directory)
    wanted = [said(model("old")), said(model("new"))]
    savers = [run("save", which, directory) for which in ("old", "new")]
    reads = [0, 0]
    while any(saver.poll() is None for saver in savers) or not sum(reads):
        got = said(load(directory))
        (which,) = [i for i, want in enumerate(wanted) if torch.equal(got, want)]
        reads[which] += 1
    assert [saver.wait() for saver in savers] == [0, 0]
    assert any(torch.equal(said(load(directory)), want) for want in wanted)
    block = json.loads((directory / "config.json").read_text())["secateurs"]
    assert {p.name for p in directory.iterdir()} == {*ALWAYS, *block["sha256"]}


def test_a_reader_whose_files_were_replaced_reads_the_new_ones(tmp_path, monkeypatch):
    """Another saver comes between the config and the files it names, as often as one likes."""
    from secateurs.storage import checkpoint

    save(model("old"), tmp_path)
    left, read = ["new", "old", "new"], checkpoint._parsed

    def parsed(*args):
        if left:
            save(model(left.pop()), tmp_path)
        return read(*args)

    monkeypatch.setattr(checkpoint, "_parsed", parsed)
    assert torch.equal(said(load(tmp_path)), said(model("new")))
    assert not left


def test_a_save_that_cannot_write_leaves_the_old_model(tmp_path, monkeypatch):
    save(model("old"), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for broken in ("written_whole", "save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"secateurs.storage.checkpoint.{broken}", full)
            with pytest.raises(CheckpointError, match="No space left"):
                save(model("new"), tmp_path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"]
)
def test_weights_of_others_are_neither_replaced_nor_left_beside_ours(name, tmp_path):
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(CheckpointError, match="expected a directory without other weights"):
        save(model("new"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_one_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "file"
    with files.written_whole(path) as scratch:
        scratch.write_text("old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def half() -> None:
        with files.written_whole(path) as scratch:
            scratch.write_text("half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


if __name__ == "__main__":
    _, job, which, directory = sys.argv
    converted = model(which)
    for _ in range(10):
        save(converted, directory)
