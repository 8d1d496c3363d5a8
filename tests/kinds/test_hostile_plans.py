"""Plans that a stranger made: headers, masks and levels that save does not write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.refusals import sentence

import secateurs as sc
from secateurs.errors import CheckpointError, PlanError
from secateurs.plan.attention_rules import Dense, Local, Sinks, Strided, VerticalSlash
from secateurs.plan.quantization import Levels

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
