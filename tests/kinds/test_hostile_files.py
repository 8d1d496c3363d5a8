"""Files that a stranger made: whatever is in a folder costs one sentence of ours, at once; no size
that a file states is allocated before it is compared, and nothing is fetched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.tiny_models import tiny_model
from support.training import dense_folder

import secateurs as sc
from secateurs import reading
from secateurs.errors import CheckpointError, DataError, PlanError, SecateursError
from secateurs.plan.attention_rules import Dense, Local, Sinks, Strided, VerticalSlash
from secateurs.plan.quantization import Levels
from secateurs.storage import model_folders

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sentence(error: BaseException) -> str:
    """What an error says, which is one line of words."""
    said = str(error)
    assert isinstance(error, SecateursError)
    assert said.isprintable()
    assert len(said.split()) > 4
    assert len(said) < 1000
    return said


# A few hundred alterations of saved models; thousands by `benchmarks/fuzz.py` itself.


def test_altered_models_load_as_they_say_or_are_refused(fuzz):
    faults: list[str] = []
    rows = fuzz.fuzz(range(240), 1, faults.append)
    assert not faults
    assert sum(rows.values()) == 240
    assert {row[0] for row in rows} == set(fuzz.SEEDS)
    assert {row[1] for row in rows} == {*fuzz.ALTERATIONS, "strange file"}
    outcomes: Counter[str] = Counter()
    for row, count in rows.items():
        outcomes[row[2]] += count
    assert min(outcomes["equal"], outcomes["as said"]) > 5  # not all is refused
    assert outcomes["refused"] > 120  # nor is the alteration passed over


def raising(error: BaseException):
    def load(folder):
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyError("query"), "foreign"),
        (MemoryError(), "foreign"),
        (CheckpointError("the model in x is damaged: 'query'"), "unclear"),
        (CheckpointError("the model in x is damaged: KeyError('query')"), "unclear"),
        (CheckpointError("the model in x\nis damaged"), "unclear"),
        (CheckpointError("the model in x is damaged: expected a file"), "refused"),
    ],
)
def test_the_harness_tells_a_sentence_from_anything_else(
    fuzz, monkeypatch, tmp_path, error, outcome
):
    monkeypatch.setattr(fuzz.sc, "load", raising(error))
    assert fuzz.attempt(0, 0, tmp_path)[2] == outcome


def test_the_harness_notices_an_answer_that_the_files_do_not_say(fuzz, monkeypatch, tmp_path):
    def seed(number, seed, folder):
        fuzz.write(fuzz.seed_files("bert/mixed"), folder)
        return "bert/mixed", "none", "nothing"

    whole = fuzz.sc.load

    def load(folder):
        model = whole(folder)
        with torch.no_grad():
            model.classifier.bias[0] += float(folder.name)
        return model

    monkeypatch.setattr(fuzz, "altered", seed)
    monkeypatch.setattr(fuzz.sc, "load", load)
    outcomes = []
    for shift in ("0", "1e-6", "0.01"):
        (tmp_path / shift).mkdir()
        outcomes.append(fuzz.attempt(0, 0, tmp_path / shift)[2])
    assert outcomes[:2] == ["equal", "as said"]
    assert outcomes[2].startswith("off by")


def test_every_seed_is_what_its_files_say(fuzz, tmp_path):
    """The plain reading, against which altered files are held, reads the unaltered ones."""
    for name in fuzz.SEEDS:
        folder = tmp_path / name.replace("/", "-").replace(":", "")
        folder.mkdir()
        fuzz.write(fuzz.seed_files(name), folder)
        said, want = fuzz.as_said(name.split("/")[0], folder), fuzz.seed_answer(name)
        assert float((said - want).abs().max() / want.abs().max()) < 1e-5, name


# What is no regular file of sane size.


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
    names = sorted(path.name for path in pruned_folder(tmp_path / "pruned").iterdir())
    for name in names:
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


# Plans.

GOOD = {
    "format_version": 1,
    "masks": {
        "layers.0.heads": {"kind": "heads"},
        "layers.0.attention": {"kind": "module"},
        "layers.0.up": {"kind": "linear", "block": [16, 16]},
        "layers.0.attention_rules": {
            "kind": "attention_rules",
            "rules": [
                {"rule": "local", "window": 3},
                {"rule": "union", "rules": [{"rule": "sinks", "n": 4}, {"rule": "dense"}]},
                {"rule": "vertical_slash", "vertical": [0, 7], "slash": []},
                {"rule": "strided", "stride": 2},
            ],
        },
    },
    "model": {"model_type": "bert", "hidden_size": 64, "layers": [[4, 4, 16, 96]]},
    "notes": {"method": "test"},
    "levels": {"layers.0.up": {"bits": 4, "scale": 0.5}},
}
KEEPS = {
    "layers.0.heads": torch.ones(4, dtype=torch.bool),
    "layers.0.attention": torch.tensor(True),
    "layers.0.up": torch.ones(6, 4, dtype=torch.bool),
}


def changed(path: str, value: object = None) -> dict:
    """The good header with another value at a path; without it where there is none."""
    header = json.loads(json.dumps(GOOD))
    *steps, last = path.split("/")
    holder = header
    for step in steps:
        holder = holder[int(step) if isinstance(holder, list) else step]
    last = int(last) if isinstance(holder, list) else last
    if value is None:
        del holder[last]
    else:
        holder[last] = value
    return header


BLOCK = "masks/layers.0.up/block"
RULES = "masks/layers.0.attention_rules/rules"
LOCAL, UNION, SLASH, STRIDED = (f"{RULES}/{i}" for i in range(4))
NESTED = {"rule": "dense"}
for depth in range(10):
    NESTED = {"rule": ("union", "intersection")[depth % 2], "rules": [NESTED]}
WRONG = [
    *[(part, value) for part in ("format_version", "masks", "model", "notes", "levels")
      for value in ([], "x", 7.5, True, [[1]])],
    ("format_version", None), ("format_version", 2), ("format_version", 10**30), ("masks", None),
    ("model", None), ("notes", None), ("more", 1), ("masks/layers.0.heads", None),
    ("masks/layers.1.heads", {"kind": "heads"}), ("masks/layers.0.heads", []),
    ("masks/layers.0.heads/kind", None), ("masks/layers.0.heads/kind", "tails"),
    ("masks/layers.0.heads/kind", ["heads"]), ("masks/layers.0.heads/kind", "linear"),
    ("masks/layers.0.heads/kind", "module"), ("masks/layers.0.attention/kind", "heads"),
    ("masks/layers.0.up/kind", "neurons"), ("masks/layers.0.heads/block", [1, 1]),
    (BLOCK, None), (BLOCK, []), (BLOCK, [16]), (BLOCK, [16, 16, 16]), (BLOCK, [0, 16]),
    (BLOCK, [-16, 16]), (BLOCK, [16.0, 16]), (BLOCK, [True, 16]), (BLOCK, ["16", 16]),
    (BLOCK, [10**30, 16]), (BLOCK, 16), (BLOCK, {"0": 16, "1": 16}),
    *[("levels/layers.0.up/bits", value) for value in (None, 1, 9, 4.0, True, "4", [4], 10**30)],
    *[("levels/layers.0.up/scale", value)
      for value in (None, 0, -1, float("nan"), float("inf"), 1e-60, 3e38, 10**400, "1", True, [1])],
    ("levels/layers.0.up", 4), ("levels/layers.0.up/more", 1),
    *[(RULES, value) for value in (None, {}, "local", 4)],
    *[(LOCAL, value) for value in ([], "local", 4, NESTED)],
    *[(f"{LOCAL}/rule", value) for value in (None, "near", ["local"], 1, "dense", "strided")],
    *[(f"{LOCAL}/window", value)
      for value in (None, -1, 3.0, True, "3", [3], 10**30, float("nan"), 2**31)],
    (f"{LOCAL}/more", 1), (f"{STRIDED}/stride", 0), (f"{LOCAL}/keep", True),
    *[(f"{UNION}/rules", value) for value in (None, [], {}, [1], [{"rule": "none"}],
      [{"rule": "union", "rules": [{"rule": "dense"}]}])],
    *[(f"{SLASH}/vertical", value)
      for value in (None, 7, [7, 0], [0, 0], [-1], [0.0], [True], ["0"], {"0": 1}, [10**30])],
    ("masks/layers.0.attention_rules/kind", "heads"), ("masks/layers.0.heads/rules", []),
    ("masks/layers.0.heads/kind", "attention_rules"),
    ("masks/layers.0.attention_rules/block", [1, 1]),
    ("model/model_type", 1), ("model/model_type", None),
    ("model/model_type", "a\nb"), ("model/model_type", "\ud800"), ("model/model_type", "b" * 999),
    ("model/hidden_size", "64"),
    ("model/hidden_size", -1), ("model/layers", 3), ("model/layers", [4]),
    ("model/layers", [[4, 4, 16]]), ("model/layers", [[4, 4, 16, 96.0]]), ("model/more", 1),
    ("notes/deep", json.loads("[" * 40 + "]" * 40)),
]  # fmt: skip


def saved_plan(path: Path, header: object, keeps: dict[str, torch.Tensor] = KEEPS) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(keeps, path, metadata={"secateurs_plan": text})
    return path


def test_the_good_plan_is_read(tmp_path):
    plan = sc.SparsityPlan.load(saved_plan(tmp_path / "p", GOOD))
    assert plan.masks["layers.0.up"].block == (16, 16)
    assert plan.levels == {"layers.0.up": Levels(4, 0.5)}
    rules = plan.masks["layers.0.attention_rules"].rules
    assert rules == (Local(3), Sinks(4) | Dense(), VerticalSlash((0, 7)), Strided(2))


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda value: str(value)[:40])
def test_a_plan_that_save_does_not_write_is_refused(tmp_path, path, value):
    with pytest.raises(CheckpointError) as error:
        sc.SparsityPlan.load(saved_plan(tmp_path / "p", changed(path, value)))
    sentence(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"a":' * 9999,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
    ],
)
def test_a_plan_whose_header_is_no_object_is_refused(tmp_path, text):
    with pytest.raises(CheckpointError) as error:
        sc.SparsityPlan.load(saved_plan(tmp_path / "p", text))
    sentence(error.value)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("layers.0.heads", torch.ones(4)),
        ("layers.0.heads", torch.ones(4, dtype=torch.uint8)),
        ("layers.0.heads", torch.tensor(True)),
        ("layers.0.heads", torch.ones(2, 2, dtype=torch.bool)),
        ("layers.0.attention", torch.ones(1, dtype=torch.bool)),
        ("layers.0.up", torch.ones(24, dtype=torch.bool)),
        ("layers.9.heads", torch.ones(4, dtype=torch.bool)),
        ("layers.0.attention_rules", torch.ones(4, dtype=torch.bool)),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(tmp_path, name, keep):
    with pytest.raises(CheckpointError) as error:
        sc.SparsityPlan.load(saved_plan(tmp_path / "p", GOOD, {**KEEPS, name: keep}))
    sentence(error.value)


def test_a_plan_that_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="only hidden_size, layers, model_type"):
        sc.SparsityPlan({}, {"name": "mine"}).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bits", [True, 4.0, "4", None, [4], 1, 9, float("nan"), 10**30])
def test_bits_are_a_whole_number(bits):
    with pytest.raises(PlanError, match=r"levels of 2 to 8 bits|bits to be a whole number"):
        Levels(bits, 1.0)


@pytest.mark.parametrize("scale", ["1.0.0", None, [1], 10**400, float("nan"), 1e39, 3e38, {}])
def test_a_scale_is_a_number(scale):
    with pytest.raises(PlanError, match=r"\bscale\b"):
        Levels(8, scale)


# Folders: configs that fetch, or ask for more than there is.


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
