"""Input that nobody checked: what cannot be used is refused at the door, in one sentence, before
any work and without a trace; what can be used in another form than expected is used rightly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from support.heads import (
    BATCH,
    HEADS,
    trace,
)
from support.tiny_models import tiny_model
from torch import nn

import secateurs
from secateurs import Budget, Gates, HeadMask, Levels, Session, SparsityPlan
from secateurs.architectures.records import ARCHITECTURES
from secateurs.errors import (
    PlanError,
    SecateursError,
)
from secateurs.plan.attention_rules import Dense, Local


@pytest.fixture(autouse=True)
def records() -> Iterator[None]:
    """What is registered as an architecture is forgotten again."""
    known = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


class Thing:
    """No argument of anything."""


# What is tried in place of each argument, and the words of annotations that let it pass.
WRONG: dict[str, tuple[Any, tuple[str, ...]]] = {
    "nothing": (None, ("None",)),
    "a negative number": (-1, ("int", "float")),
    "zero": (0, ("int", "float")),
    "a fraction": (0.37, ("float",)),
    "nan": (float("nan"), ()),
    "infinity": (float("inf"), ()),
    "truth": (True, ("bool",)),
    "words": ("words", ("str",)),
    "no words": ("", ("str",)),
    "bytes": (b"bytes", ()),
    "an empty list": ([], ("Iterable", "Sequence", "tuple", "Inputs", "list")),
    "a list of words": (["words"], ("Iterable", "Sequence", "tuple", "list")),
    "an empty tuple": ((), ("Iterable", "Sequence", "tuple", "Inputs")),
    "an empty dict": ({}, ("Mapping", "dict", "Inputs", "State")),
    "a dict of words": ({"words": "words"}, ("Mapping", "dict", "Inputs", "State")),
    "a tensor": (torch.ones(2), ("Tensor", "Inputs")),
    "a number in a tensor": (torch.tensor(1.0), ("Tensor", "Inputs")),
    "a module": (nn.Linear(2, 2), ("Module", "Callable")),
    "a function": (print, ("Callable",)),
    "a class": (Thing, ("Callable",)),
    "an object": (Thing(), ()),
}  # fmt: skip


def bert() -> nn.Module:
    return tiny_model("bert", num_hidden_layers=1)


def converted() -> nn.Module:
    return secateurs.convert(bert(), HEADS)


def opened() -> Gates:
    model = bert()
    return Gates(model, secateurs.find_sites(model)).__enter__()


# A good value of each parameter, by its name, or by function and name where that says more.
GOOD: dict[str, Callable[[], Any]] = {
    "model": bert,
    "plan": lambda: HEADS,
    "batches": lambda: [BATCH],
    "method": lambda: "magnitude",
    "budget": lambda: "heads=0.5",
    "seed": lambda: 0,
    "progress": lambda: False,
    "teacher": bert,
    "steps": lambda: 1,
    "lr": lambda: 1e-3,
    "inplace": lambda: False,
    "tokens": lambda: 8,
    "costs": lambda: None,
    "directory": lambda: "folder",
    "device": lambda: "cpu",
    "path": lambda: "file",
    "sites": lambda: secateurs.find_sites(bert()),
    "inputs": lambda: BATCH,
    "baseline": lambda: None,
    "min_time": lambda: 0.0,
    "min_repeats": lambda: 1,
    "example_inputs": lambda: BATCH,
    "name": lambda: "layers.0.heads",
    "gate": lambda: torch.ones(4),
    "callback": lambda: print,
    "weight": lambda: torch.ones(64, 64),
    "keep": lambda: torch.ones(4).bool(),
    "masks": dict,
    "levels": lambda: Levels(4, 0.5),
    "bits": lambda: 4,
    "scale": lambda: 0.5,
    "codes": lambda: torch.ones(2).to(torch.int8),
    "dtype": lambda: torch.float32,
    "values": lambda: torch.ones(1, 32, 32),
    "indptr": lambda: torch.tensor([0, 1], dtype=torch.int32),
    "indices": lambda: torch.tensor([0], dtype=torch.int32),
    "shape": lambda: (32, 32),
    "text": lambda: "heads=0.5",
    "heads": lambda: 0.5,
    "site": lambda: next(iter(secateurs.find_sites(bert()))),
    "other": lambda: HEADS,
    "finite": lambda: True,
    "state": dict,
    "importance": lambda: torch.ones(32, 32),
    "kept": lambda: 2,
    "rankings": lambda: {
        "en": {s.name: torch.rand(s.shape) for s in secateurs.find_sites(bert()).of_kind("heads")}
    },
    "trial": lambda: lambda plan: 0.5,
    "most": lambda: 2,
    "fraction": lambda: 0.5,
    "use_backend.name": lambda: "reference",
    "explain.model": converted,
    "export_dense.model": converted,
    "save.model": converted,
    "Gates.set_levels.name": lambda: "layers.0.up",
    "Gates.fold.name": lambda: "layers.0.up",
    "BlockSparseWeight.pack.keep": lambda: torch.ones(2, 2).bool(),
    "BlockMask.keep": lambda: torch.ones(2, 2).bool(),
    "PatternMask.keep": lambda: torch.ones(32, 32).bool(),
    "ModuleMask.keep": lambda: torch.tensor(True),
    "Session.method": lambda: "dsp",
    "SparsityPlan.model": dict,
    "SparsityPlan.levels": dict,
    "SparsityPlan.validate.model": lambda: secateurs.find_sites(bert()).fingerprint(),
    "model_class": lambda: None,
    "kind": lambda: None,
    "rules": lambda: [Local(1), Dense()],
    "model_type": lambda: "mine",
    "like": lambda: "bert",
}  # fmt: skip
INSTANCES: dict[str, Callable[[], Any]] = {
    "Gates": opened,
    "Session": lambda: Session(bert(), "dsp", budget="heads=0.5"),
    "SparsityPlan": lambda: HEADS,
    "HeadMask": lambda: HeadMask(torch.ones(4).bool()),
    "NeuronMask": lambda: secateurs.NeuronMask(torch.ones(96).bool()),
    "ModuleMask": lambda: secateurs.ModuleMask(torch.tensor(True)),
    "BlockMask": lambda: secateurs.BlockMask(torch.ones(2, 2).bool()),
    "PatternMask": lambda: secateurs.PatternMask(torch.ones(32, 32).bool()),
    "AttentionRuleMask": lambda: secateurs.AttentionRuleMask([Local(1), Dense()]),
    "Budget": lambda: Budget(heads=0.5),
    "Levels": lambda: Levels(4, 0.5),
    "BlockSparseWeight": lambda: secateurs.BlockSparseWeight.pack(torch.ones(64, 64)),
}


def public() -> Iterator[tuple[str, str]]:
    """Every public function, class and method, as the class's name, if any, and the function's."""
    for name in secateurs.__all__:
        found = getattr(secateurs, name)
        if isinstance(found, type) and issubclass(found, (Exception, Enum)):
            continue
        if not isinstance(found, type):
            if callable(found):
                yield "", name
            continue
        yield "", name
        for method, member in inspect.getmembers(found, callable):
            if not method.startswith("_") and not hasattr(dict, method):
                assert callable(member)
                yield name, method


def parameters(function: Any) -> list[inspect.Parameter]:
    fixed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in inspect.signature(function).parameters.values() if p.kind in fixed]


def good(owner: str, name: str, parameter: inspect.Parameter) -> Any:
    places = (f"{owner}.{name}.{parameter.name}", f"{name}.{parameter.name}", parameter.name)
    for place in places:
        if place in GOOD:
            return GOOD[place]()
    assert parameter.default is not parameter.empty, f"say in GOOD what a good {places[0]} is"
    return parameter.default


def dotted(*names: str) -> str:
    return ".".join(filter(None, names))


CALLS = [
    pytest.param(owner, name, parameter.name, id=dotted(owner, name, parameter.name))
    for owner, name in public()
    for parameter in parameters(getattr(getattr(secateurs, owner) if owner else secateurs, name))
    if parameter.name != "self"
]


@pytest.mark.parametrize(("owner", "name", "tried"), CALLS)
def test_every_argument_of_everything_public_is_checked(owner, name, tried, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    holder = getattr(secateurs, owner) if owner else secateurs
    bound = isinstance(inspect.getattr_static(holder, name), classmethod)
    signature = parameters(getattr(holder, name))
    for what, (value, passes) in WRONG.items():
        target = INSTANCES[owner]() if owner and not bound else holder
        function = getattr(target, name)
        usual = {p.name: good(owner, name, p) for p in signature if p.name != "self"}
        annotation = next(str(p.annotation) for p in signature if p.name == tried)
        model = usual.get("model")
        before = trace(model)
        told = outcome(function, {**usual, tried: value})
        if told is None:
            lets_pass = "Any" in annotation or any(word in annotation for word in passes)
            assert lets_pass, f"{tried} takes {what}"
        else:
            assert isinstance(told, SecateursError), f"{tried} as {what}: {told!r}"
            assert str(told), what
            assert "\n" not in str(told), what
        may = tried == "inplace" and told is None
        assert may or trace(model) == before, f"{tried} as {what} changed the model"


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> Exception | None:
    """What a call raises."""
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


def test_the_walk_sees_what_is_public():
    names = {dotted(*pair) for pair in public()}
    assert {"prune", "distill", "convert", "Budget", "Gates.set", "SparsityPlan.save"} <= names


def test_a_plan_owns_its_data(tmp_path):
    keep = torch.tensor([False, True, True, True])
    mask, notes, masks = HeadMask(keep), {"seed": np.int64(3), "rate": np.float32(0.5)}, {}
    masks["layers.0.heads"] = masks["layers.1.heads"] = mask
    plan = SparsityPlan(masks, notes=notes)
    keep.fill_(True)
    mask.keep.fill_(True)
    masks.clear()
    notes["seed"] = 4
    assert [m.keep.tolist() for m in plan.masks.values()] == [[False, True, True, True]] * 2
    plan.save(tmp_path / "plan")
    loaded = SparsityPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert loaded.notes == {"seed": 3, "rate": 0.5}
    with pytest.raises(PlanError, match="values that JSON knows"):
        SparsityPlan(notes={"seed": Thing()})
