"""Files that a stranger made: whatever is in a folder costs one sentence of ours, at once; no size
that a file states is allocated before it is compared, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.refusals import sentence
from support.tiny_models import tiny_model
from support.training import dense_folder

import secateurs as sc
from secateurs import reading
from secateurs.errors import CheckpointError, DataError
from secateurs.storage import model_folders
from secateurs.storage.model_card import NAME as CARD
from secateurs.storage.sentinel import NAME as SENTINEL


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def deep(path: Path) -> None:
    path.write_text('{"a":' * 100_000)


STRANGE = (pipe, device, folder, loop, sparse, deep)
IRREGULAR = (pipe, device, folder)  # refused as such, before a byte is read


def pruned_folder(path: Path) -> Path:
    plan = sc.SparsityPlan({"layers.0.heads": sc.HeadMask(torch.arange(4) > 1)})
    sc.save(sc.convert(tiny_model("bert"), plan), path)
    return path


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_no_strange_file_is_waited_for_or_read(tmp_path, make):
    names = {path.name for path in pruned_folder(tmp_path / "pruned").iterdir()} - {SENTINEL, CARD}
    for name in sorted(names):
        path = pruned_folder(tmp_path / f"pruned-{name}") / name
        path.unlink()
        make(path)
        with pytest.raises(CheckpointError) as error:
            sc.load(path.parent)
        assert ("expected a regular file" in sentence(error.value)) == (make in IRREGULAR)
    make(tmp_path / "plan")
    with pytest.raises(CheckpointError) as error:
        sc.SparsityPlan.load(tmp_path / "plan")
    assert "cannot read a plan" in sentence(error.value)


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_no_strange_file_of_a_stock_folder_is_waited_for(tmp_path, make, name):
    path = dense_folder(tmp_path / "dense") / name
    path.unlink()
    make(path)
    opens = model_folders.open_tokenizer if name == "tokenizer.json" else model_folders.open_model
    with pytest.raises((CheckpointError, DataError)) as error:
        opens(path.parent)
    said = sentence(error.value)
    assert make not in (pipe, device) or "expected a regular file" in said


@pytest.mark.parametrize(
    ("name", "inside"),
    [("model.safetensors", True), ("a-1.json", True), ("..", False), ("../a", False), ("", False),
     ("/etc/passwd", False), ("a/b", False), ("a\\b", False), ("a\0b", False), ("a\nb", False),
     (".", False), (None, False), (["a"], False)],
)  # fmt: skip
def test_names_lead_nowhere_else(name, inside):
    assert reading.is_plain_name(name) == inside


# Headers of safetensors files.


def tensors_file(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


HEADERS = {
    "not JSON": b"{",
    "a list": [],
    "nested": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "not UTF-8": b'{"\xff": 1}',
    "metadata of numbers": {"__metadata__": {"a": 1}, **entry()},
    "an entry that is none": {"a": 1},
    "another key": entry(more=1),
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "a dtype of nobody": entry(dtype="F31"),
    "a dtype that is none": entry(dtype=["F32"]),
    "a shape that is none": entry(shape=4),
    "a size that is none": entry(shape=[2.0, 2]),
    "a size that is true": entry(shape=[True, 4]),
    "a negative size": entry(shape=[-2, -2]),
    "a huge size": entry(shape=[2**62, 4]),
    "many sizes": entry(shape=[2**30] * 5, data_offsets=[0, 2**62]),
    "many dimensions": entry(shape=[1] * 5000 + [4]),
    "an offset too few": entry(data_offsets=[0]),
    "offsets swapped": entry(data_offsets=[16, 0]),
    "offsets behind the end": entry(data_offsets=[16, 32]),
    "a gap in front": {**entry(shape=[3], data_offsets=[4, 16])},
    "a gap behind": entry(shape=[3], data_offsets=[0, 12]),
    "overlap": {**entry(), "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "bytes that do not fit": entry(shape=[2, 3]),
}


@pytest.mark.parametrize("case", list(HEADERS))
def test_a_header_that_lies_is_refused(tmp_path, case):
    path = tensors_file(tmp_path / "f", HEADERS[case])
    for read in (reading.tensors_header, lambda p: reading.read_tensors(p, 1 << 20)):
        with pytest.raises(CheckpointError) as error:
            read(path)
        sentence(error.value)


def test_sizes_beside_an_empty_one_are_sane(tmp_path):
    header = entry(shape=[0, 2**31 - 1, 2**31 - 1], data_offsets=[0, 0])
    path = tensors_file(tmp_path / "f", header, data=b"")
    with pytest.raises(CheckpointError, match="a list of sizes as shape"):
        reading.tensors_header(path)


@pytest.mark.parametrize("stated", [9, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused(tmp_path, stated):
    (tmp_path / "f").write_bytes(struct.pack("<Q", stated) + b"{}")
    with pytest.raises(CheckpointError, match="has no header"):
        reading.tensors_header(tmp_path / "f")


def test_what_safetensors_writes_is_read(tmp_path):
    wanted = {
        "a": torch.arange(6).view(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4),
        "d": torch.randn(3, 5).bfloat16(), "e": torch.tensor([1, -1], dtype=torch.int8),
    }  # fmt: skip
    save_file(wanted, tmp_path / "f", metadata={"k": "v"})
    header, found = reading.read_tensors(tmp_path / "f", 1 << 20)
    assert header.metadata == {"k": "v"}
    assert header == reading.tensors_header(tmp_path / "f")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert all(found[name].dtype == wanted[name].dtype for name in wanted)


def test_a_truth_value_is_zero_or_one(tmp_path):
    path = tensors_file(
        tmp_path / "f", entry(dtype="BOOL", shape=[16]), bytes([0, 1, 255] + [0] * 13)
    )
    with pytest.raises(CheckpointError, match=r"0 or 1 as each truth value of 'a' in .* got 255"):
        reading.read_tensors(path, 1 << 20)


@pytest.fixture
def offline(monkeypatch):
    """A list of what was asked for outside, which nobody gets."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(transformers.modeling_utils, "is_kernels_available", lambda *_: True)
    for module in (transformers.modeling_utils, transformers.integrations.hub_kernels):
        for name in ("lazy_import_flash_attention", "load_and_register_attn_kernel", "get_kernel"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, refuse)
    return asked


KERNELS = ["some/kernel", "kernels-community/flash-attn2", "flash_attention_2", "paged|sdpa"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_fetches_no_code(tmp_path, offline, key, kernel):
    stock, ours = dense_folder(tmp_path / "stock"), pruned_folder(tmp_path / "ours")
    want = sc.load(ours)
    for folder in (stock, ours):
        config = json.loads((folder / "config.json").read_text())
        config |= {key: kernel, "auto_map": {"AutoModel": "x--y.Z"}, "use_kernels": True}
        (folder / "config.json").write_text(json.dumps(config))
    loaded = sc.load(ours)
    assert loaded.config._attn_implementation == want.config._attn_implementation
    with pytest.raises(CheckpointError, match="expected eager, sdpa, flex_attention as"):
        model_folders.open_model(stock)
    with pytest.raises(CheckpointError, match="expected eager, sdpa, flex_attention as"):
        model_folders.open_classifier(stock, 2)
    assert not offline


HUGE = {
    "num_hidden_layers": 10**9, "vocab_size": 5 * 10**8, "intermediate_size": 10**9,
    "max_position_embeddings": 10**12, "num_labels": 10**9, "hidden_size": 4 * 10**6,
    "type_vocab_size": 10**10,
}  # fmt: skip


@pytest.mark.parametrize("name", list(HUGE))
def test_no_room_is_made_for_what_a_config_only_states(tmp_path, name):
    for folder in (dense_folder(tmp_path / "stock"), pruned_folder(tmp_path / "ours")):
        config = json.loads((folder / "config.json").read_text())
        config[name] = HUGE[name]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError) as error:
            model_folders.open_model(folder)
        said = sentence(error.value)
        assert folder.name == "ours" or "bytes of weights" in said


@pytest.mark.parametrize(
    "config",
    [{"architectures": {"a": 1}}, {"architectures": 3}, {"architectures": [3]},
     {"architectures": ["Trainer"]}, {"architectures": ["pipeline"]}, {"architectures": ["a b"]},
     {"architectures": ["BertModel"], "model_type": 3},
     {"architectures": ["BertModel"], "hidden_size": "many"},
     {"architectures": ["BertModel"], "num_hidden_layers": -1},
     {"architectures": ["BertModel"], "id2label": 5},
     {"architectures": ["BertModel"], "hidden_size": 64, "num_attention_heads": 0}],
    ids=str,
)  # fmt: skip
def test_a_stock_config_of_wrong_kinds_is_refused(tmp_path, config):
    folder = dense_folder(tmp_path / "stock")
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**whole, **config}))
    with pytest.raises(CheckpointError) as error:
        model_folders.open_model(folder)
    said = sentence(error.value)
    named = config.get("architectures")
    if named != ["BertModel"]:
        assert "expected an architecture" in said or "expected a list of names" in said


ENTRIES = [
    ("more", 1), ("format_version", True), ("format_version", 3), ("format_version", {}),
    ("sha256", []), ("sha256", {"../a": "b"}), ("sha256", {"a": 1}), ("sha256", {}),
    ("forms", None), ("forms", {}), ("forms", {"machine": 1, "picked": {}}),
    ("forms", {"machine": "x", "picked": {"layers.0.up": ["dense"]}}),
    ("model_class", "BertModel"), ("model_class", {"name": "BertModel"}),
    ("model_class", {"module": "a\nb", "name": "BertModel"}), ("arguments", {"a": 1}),
    ("arguments", []), ("dtypes", {"a": "float128"}), ("dtypes", {"a": ["float32"]}),
    ("tied", {"a": 1}), ("settings", {"a": "b"}), ("settings", {"a": float("nan")}),
    ("generation_config", []), ("replaces", "x"), ("replaces", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ENTRIES, ids=str)
def test_an_entry_of_the_saved_config_of_a_wrong_kind_is_refused(tmp_path, name, value):
    path = pruned_folder(tmp_path / "ours") / "config.json"
    config = json.loads(path.read_text())
    config["secateurs"][name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        sc.load(path.parent)
    said = sentence(error.value)
    assert name in said or name in ("format_version", "sha256")
    assert name != "more" or "expected only" in said


@pytest.mark.parametrize("value", [[None], float("inf"), "yes", 2])
@pytest.mark.parametrize("name", ["output_hidden_states", "use_cache", "return_dict"])
def test_a_switch_of_a_saved_config_is_on_or_off(tmp_path, name, value):
    path = pruned_folder(tmp_path / "ours") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=f"expected yes or no as {name}"):
        sc.load(path.parent)
