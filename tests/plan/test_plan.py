from __future__ import annotations

import pytest
import torch

from secateurs import BlockMask, HeadMask, ModuleMask, NeuronMask, SparsityPlan
from secateurs.errors import CheckpointError, PlanError
from secateurs.plan import Site

MODEL = {"model_type": "bert", "hidden_size": 8, "layers": [[4, 4, 2, 8]]}
SITES = [
    Site("layers.0.heads", "heads", 0, (4,)),
    Site("layers.0.neurons", "neurons", 0, (8,)),
    Site("layers.0.attention", "module", 0, ()),
    Site("layers.0.up", "linear", 0, (8, 8)),
]


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


def full_plan() -> SparsityPlan:
    return SparsityPlan(
        {
            "layers.0.heads": HeadMask(bits("1011")),
            "layers.0.neurons": NeuronMask(bits("11110000")),
            "layers.0.attention": ModuleMask(torch.tensor(True)),
            "layers.0.up": BlockMask(bits("1001").view(2, 2), (4, 4)),
        },
        MODEL,
        {"method": "test"},
    )


def test_merge_keeps_what_both_keep():
    other = SparsityPlan({"layers.0.heads": HeadMask(bits("1101"))}, MODEL)
    merged = full_plan().merge(other)
    assert merged.masks["layers.0.heads"].keep.tolist() == [True, False, False, True]
    assert merged.masks["layers.0.up"].equal(full_plan().masks["layers.0.up"])
    assert merged == other.merge(full_plan())


def test_merge_refuses_another_model_and_other_blocks():
    with pytest.raises(PlanError, match="one model"):
        full_plan().merge(SparsityPlan({}, {**MODEL, "hidden_size": 16}))
    with pytest.raises(PlanError, match="one block size"):
        BlockMask(bits("11").view(1, 2), (4, 4)).merge(BlockMask(bits("11").view(1, 2), (8, 8)))
    with pytest.raises(PlanError, match="one kind and shape"):
        HeadMask(bits("11")).merge(HeadMask(bits("111")))


def test_save_and_load_round_trip(tmp_path):
    path = tmp_path / "plan.safetensors"
    full_plan().save(path)
    loaded = SparsityPlan.load(path)
    assert loaded == full_plan()
    assert loaded.model == MODEL
    assert loaded.notes == {"method": "test"}
    assert loaded != SparsityPlan({}, MODEL)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def test_an_empty_plan_round_trips(tmp_path):
    SparsityPlan({}, MODEL).save(tmp_path / "p")
    assert SparsityPlan.load(tmp_path / "p") == SparsityPlan({}, MODEL)


def test_load_refuses_truncated_foreign_and_missing_files(tmp_path):
    path = tmp_path / "plan.safetensors"
    full_plan().save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot read a plan"):
        SparsityPlan.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="holds no secateurs plan"):
        SparsityPlan.load(tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="cannot read a plan"):
        SparsityPlan.load(tmp_path / "absent")


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="cannot write"):
        full_plan().save(tmp_path / "no" / "such" / "dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "mask", "words"),
    [
        ("layers.0.heads", HeadMask(bits("111")), "must have shape"),
        ("layers.0.heads", NeuronMask(bits("1111")), "takes a mask of kind"),
        ("layers.9.heads", HeadMask(bits("1111")), "does not have"),
        ("layers.0.up", BlockMask(bits("1111").view(2, 2), (3, 4)), "does not divide"),
        ("layers.0.up", BlockMask(bits("11").view(1, 2), (4, 4)), "must have shape"),
    ],
)
def test_validate_says_what_does_not_fit(name, mask, words):
    full_plan().validate(SITES, MODEL)
    with pytest.raises(PlanError, match=words):
        SparsityPlan({name: mask}).validate(SITES, MODEL)


def test_validate_refuses_a_plan_of_another_model():
    with pytest.raises(PlanError, match="the plan is for bert"):
        full_plan().validate(SITES, {**MODEL, "hidden_size": 16})


def test_masks_must_be_bool_tensors():
    with pytest.raises(PlanError, match="bool tensor"):
        HeadMask(torch.ones(4))
    with pytest.raises(PlanError, match="bool tensor"):
        HeadMask([True])
    with pytest.raises(PlanError, match="two positive sizes"):
        BlockMask(bits("1").view(1, 1), (0, 4))
