"""Input that nobody checked: what cannot be used is refused at the door, in one sentence, before
any work and without a trace; what can be used in another form than expected is used rightly.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.models import relative
from support.tiny_models import SIZES, tiny_model
from torch import nn

import secateurs
from secateurs import Budget, Gates, HeadMask, Levels, ModuleMask, Session, SparsityPlan
from secateurs.data.batches import main_output
from secateurs.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    MethodError,
    PlanError,
    SecateursError,
)
from secateurs.plan.attention_rules import Dense, Local
from secateurs.pruning.methods.gradient import GradientPruner

HEADS = SparsityPlan({"layers.0.heads": HeadMask(torch.tensor([False, True, True, True]))})
IDS = torch.randint(3, 100, (3, 9), generator=torch.Generator().manual_seed(1))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


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


def trace(model: Any) -> list[Any]:
    """What of a model could have been changed."""
    if not isinstance(model, nn.Module):
        return []
    tensors = [(n, t.sum().item(), t.requires_grad) for n, t in model.state_dict().items()]
    modules = list(model.modules())
    hooks = [
        h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    ours = [h for h in hooks if "transformers" not in str(getattr(h, "__module__", None))]
    modes = [m.training for m in modules]
    return [*tensors, *modes, len(ours), [p.grad is None for p in model.parameters()]]


def test_the_walk_sees_what_is_public():
    names = {dotted(*pair) for pair in public()}
    assert {"prune", "distill", "convert", "Budget", "Gates.set", "SparsityPlan.save"} <= names


def headed(head: type[nn.Module], **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_key_value_heads": 2, "pad_token_id": 0} if "Llama" in head.__name__ else {}
    model = head(head.config_class(**{**SIZES, **sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    return model.eval()


def pruned(model: nn.Module, batch: Any, method: str = "gradient", **options: Any) -> SparsityPlan:
    budget = options.pop("budget", "weights=0.5" if method == "seven_pre" else "heads=0.5")
    return secateurs.prune(model, [batch], method=method, budget=budget, progress=False, **options)


def distilled(model: nn.Module, batch: Any = BATCH, **options: Any) -> nn.Module:
    return secateurs.distill(model, HEADS, [batch], steps=2, lr=1e-3, progress=False, **options)


CLASSES = {**BATCH, "labels": torch.tensor([0, 1, 0])}
ENDS = {"start_positions": torch.tensor([0, 1, 2]), "end_positions": torch.tensor([1, 2, 3])}
CHOICES = {"input_ids": torch.stack([IDS, IDS.flip(1)], 1), "labels": torch.tensor([0, 1, 0])}
TASKS = {
    "sequences": (transformers.BertForSequenceClassification, CLASSES),
    "sequences by a decoder": (transformers.LlamaForSequenceClassification, CLASSES),
    "answers": (transformers.BertForQuestionAnswering, {**BATCH, **ENDS}),
    "answers by a decoder": (transformers.LlamaForQuestionAnswering, {**BATCH, **ENDS}),
    "tokens": (transformers.BertForTokenClassification, {**BATCH, "labels": IDS % 2}),
    "masked words": (transformers.BertForMaskedLM, {**BATCH, "labels": IDS}),
    "next words": (transformers.LlamaForCausalLM, {**BATCH, "labels": IDS}),
    "choices": (transformers.BertForMultipleChoice, CHOICES),
    "words and sentences": (
        transformers.BertForPreTraining,
        {**BATCH, "labels": IDS, "next_sentence_label": torch.tensor([0, 1, 0])},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_head_is_pruned_by_its_own_loss(task):
    """What the labels say decides: by finite differences, unit by unit, of the loss itself."""
    head, batch = TASKS[task]
    model = headed(head)
    sites = secateurs.find_sites(model)
    pruner = GradientPruner(normalize="none")
    pruner.start(model, sites, Budget(heads=0.5), seed=0)
    one = {name: value[:1] for name, value in batch.items()}
    pruner.observe(one)
    pruner.end_round()
    want, double = [], copy.deepcopy(model).double()
    for unit in range(4):
        ends = []
        for step in (1e-2, -1e-2):
            gate = torch.ones(4, dtype=torch.double)
            gate[unit] += step
            with Gates(double, sites) as gates, torch.no_grad():
                gates["layers.1.heads"] = gate
                ends.append(double(**one).loss)
        want.append(float(ends[0] - ends[1]) / 2e-2)
    got = pruner.scores()["layers.1.heads"]
    torch.testing.assert_close(got, torch.tensor(want).abs().double(), rtol=1e-2, atol=1e-7)
    assert pruned(model, batch, "seven_pre").masks


@pytest.mark.parametrize("task", TASKS)
def test_every_head_recovers_by_distillation(task):
    head, batch = TASKS[task]
    model = headed(head)
    inputs = {n: v for n, v in batch.items() if n in ("input_ids", "attention_mask")}

    def off(student: nn.Module) -> float:
        with torch.no_grad():
            given = main_output(secateurs.apply(student, HEADS)(**inputs))
            return float((given - main_output(model(**inputs))).square().mean())

    options: Any = {"steps": 20, "lr": 3e-3, "progress": False}
    assert off(secateurs.distill(model, HEADS, [batch], **options)) < 0.7 * off(model)


def test_gates_of_examples_count_once_for_all_their_choices():
    """The gradient at an example's gate is that of a batch of this example alone."""
    model = headed(transformers.BertForMultipleChoice)
    sites = secateurs.find_sites(model)

    def gradient(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        size = len(batch["labels"])
        gate = torch.ones(size, 4, requires_grad=True)
        with Gates(model, sites) as gates:
            gates["layers.0.heads"] = gate
            loss = model(**batch).loss * size
        return torch.autograd.grad(loss, gate)[0]

    alone = [gradient({n: v[i : i + 1] for n, v in CHOICES.items()}) for i in range(3)]
    torch.testing.assert_close(gradient(CHOICES), torch.cat(alone))


IGNORED = {**BATCH, "labels": torch.full_like(IDS, -100)}


@pytest.mark.parametrize("method", ["gradient", "seven_pre"])
def test_labels_that_do_not_count_make_no_plan(method):
    with pytest.raises(MethodError, match="expected a finite loss on each batch"):
        pruned(headed(transformers.BertForTokenClassification), IGNORED, method)


def test_a_training_on_labels_that_do_not_count_has_no_plan():
    model = headed(transformers.BertForTokenClassification).train()
    with Session(model, "dsp", budget="heads=0.5", steps=3, cooldown=0.5) as session:
        for _ in range(3):
            model(**IGNORED).loss.backward()
            session.after_backward()
            session.after_step()
    with pytest.raises(MethodError, match="none but zeros, NaN or infinity in all 3 steps"):
        _ = session.plan


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({**BATCH, "labels": torch.tensor(1)}, "expected labels with values for each example"),
        ({**BATCH, "labels": torch.tensor([0, 9, 0])}, "Target 9 is out of bounds"),
        ({"tokens": IDS}, "expected a batch that BertForSequenceClassification takes"),
        ({"input_ids": IDS.float()}, "expected a batch that BertFor"),
        ({"input_ids": IDS + 1000}, "expected a batch that BertFor"),
        ({1: IDS}, "expected batches as dicts of tensors"),
        ({"input_ids": IDS.tolist()}, "got a list by 'input_ids'"),
        ({"input_ids": IDS.to("meta")}, "on the meta device"),
        ({}, "one batch size above 0"),
        ({"input_ids": IDS[:0]}, "one batch size above 0"),
    ],
)
@pytest.mark.parametrize("use", [pruned, distilled])
def test_batches_of_no_use_are_refused(use, batch, words):
    model = headed(transformers.BertForSequenceClassification).train()
    if use is distilled and "labels" in batch and batch["labels"].dim():
        batch = {**batch, "input_ids": IDS + 1000}  # labels are ignored
        words = "expected a batch that BertFor"
    before = trace(model)
    with pytest.raises(SecateursError, match=words) as refused:
        use(model, batch)
    assert "\n" not in str(refused.value)
    assert trace(model) == before


@pytest.mark.parametrize(
    ("batches", "words"),
    [(iter(()), "an empty dataset"), (BATCH, "got a dict"), (IDS, "got a tensor"), (3, "got 3"),
     ([CLASSES, BATCH], "the same labels in every batch, got none and labels")],
)  # fmt: skip
def test_other_things_than_batches_are_refused(batches, words):
    model = headed(transformers.BertForSequenceClassification)
    with pytest.raises(SecateursError, match=words):
        secateurs.prune(model, batches, budget="heads=0.5")


def test_budgets_and_options_are_taken_in_the_forms_people_have():
    model = headed(transformers.BertForSequenceClassification)
    want = pruned(model, CLASSES, rounds=2, budget="heads=0.5")
    got = pruned(model, CLASSES, rounds=np.int64(2), budget={"heads": np.float32(0.5)})
    assert got == want
    assert type(got.notes["options"]["rounds"]) is int
    for budget in ({"ears": 0.5}, {"heads": "half"}, {}, {"heads": 0.5, 3: 1}):
        with pytest.raises(BudgetError, match="expected"):
            pruned(model, CLASSES, budget=budget)


@pytest.mark.parametrize(
    "teacher",
    [
        pytest.param(lambda: tiny_model("bert", hidden_size=32), id="narrower"),
        pytest.param(lambda: tiny_model("bert", vocab_size=10), id="of fewer words"),
        pytest.param(lambda: headed(transformers.BertForSequenceClassification), id="a classifier"),
    ],
)
def test_teachers_of_another_kind_are_refused(teacher):
    with pytest.raises(DataError, match=r"expected a (teacher whose outputs|batch that Bert)"):
        distilled(tiny_model("bert"), teacher=teacher())


def test_a_teacher_of_another_shape_is_imitated_in_what_it_answers():
    student = headed(transformers.BertForSequenceClassification)
    teacher = headed(transformers.LlamaForSequenceClassification, vocab_size=200)
    weight = distilled(student, teacher=teacher).classifier.weight
    assert weight.shape == student.classifier.weight.shape


def test_a_student_is_as_trainable_as_the_model_was():
    model = headed(transformers.BertForSequenceClassification)
    model.bert.embeddings.requires_grad_(False)
    student = distilled(model)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in student.parameters()] == wanted
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("place", ["made", "called", "without gradients"])
def test_inference_mode_around_a_model_or_a_call_changes_nothing(place):
    want_model = headed(transformers.BertForSequenceClassification)
    want = {m: pruned(want_model, CLASSES, m) for m in ("gradient", "seven_pre", "smp")}
    around = torch.no_grad() if place == "without gradients" else torch.inference_mode()
    with around:
        model = headed(transformers.BertForSequenceClassification)
        batch = {name: value.clone() for name, value in CLASSES.items()}
        inside = place != "made"
        found = [pruned(model, batch, m) for m in want] if inside else []
        students = [distilled(model, batch)] if inside else []
    found += [pruned(model, batch, method) for method in want]
    students.append(distilled(model, batch))
    assert found == [*want.values()] * (len(found) // 3)
    for student in students:
        student(**CLASSES).loss.backward()
    fast = secateurs.convert(model, HEADS)
    torch.testing.assert_close(fast(**CLASSES)[1], secateurs.apply(model, HEADS)(**CLASSES)[1])


def test_what_inference_mode_forbids_is_refused():
    with torch.inference_mode():
        model = headed(transformers.BertForSequenceClassification)
    with pytest.raises(ArgumentError, match="expected a model that can be trained"):
        Session(model, "dsp", budget="heads=0.5")
    with pytest.raises(ArgumentError, match="changed in place"):
        secateurs.apply(model, HEADS, inplace=True)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda m: pruned(m, CLASSES, "magnitude"), id="magnitude"),
        pytest.param(lambda m: pruned(m, CLASSES), id="gradient"),
        pytest.param(distilled, id="distill"),
        pytest.param(lambda m: Session(m, "dsp", budget="heads=0.5"), id="session"),
        pytest.param(lambda m: secateurs.apply(m, HEADS), id="apply"),
        pytest.param(lambda m: secateurs.convert(m, HEADS), id="convert"),
        pytest.param(lambda m: secateurs.measure(m, BATCH, min_time=0), id="measure"),
    ],
)
def test_models_without_their_weights_are_refused(use):
    with torch.device("meta"):
        model = headed(transformers.BertForSequenceClassification)
    with pytest.raises(ArgumentError, match="on the meta device"):
        use(model)


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


MIXED = SparsityPlan({**HEADS.masks, "layers.1.ffn": ModuleMask(torch.tensor(False))})


def in_dtypes(kind: str, form: str) -> nn.Module:
    model = tiny_model(kind)
    if form == "float32":
        return model
    if form == "a bfloat16 ffn":
        for layer in range(3):
            for role in ("up", "down"):
                secateurs.find_sites(model).linear(model, layer, role).module.bfloat16()
        return model
    model = model.bfloat16()
    for module in model.modules() if form == "float32 norms" else ():
        if "norm" in type(module).__name__.lower():
            module.float()
    return model


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "float32 norms", "a bfloat16 ffn"])
@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert", "llama"])
def test_converted_layers_run_under_autocast_as_stock_ones_do(kind, form, recorded):
    model = in_dtypes(kind, form)
    fast, masked = secateurs.convert(model, MIXED), secateurs.apply(model, MIXED)
    with torch.set_grad_enabled(recorded), torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = fast(**BATCH)[0], masked(**BATCH)[0]
    assert got.dtype == want.dtype
    assert relative(got, want) < 3e-2


@pytest.mark.parametrize("recorded", [True, False], ids=["with gradients", "without"])
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "distilbert"])
def test_layers_of_several_dtypes_run_as_stock_ones_do(kind, recorded):
    model = in_dtypes(kind, "float32 norms")
    fast, masked = secateurs.convert(model, MIXED), secateurs.apply(model, MIXED)
    with torch.set_grad_enabled(recorded):
        got, want = fast(**BATCH)[0], masked(**BATCH)[0]
    assert got.dtype == want.dtype
    assert relative(got, want) < 3e-2


@torch.no_grad()
def test_a_half_precision_layer_may_lose_everything():
    model = tiny_model("bert").half()
    plan = SparsityPlan({"layers.1.layer": ModuleMask(torch.tensor(False))})
    fast = secateurs.convert(model, plan)
    got, want = fast(**BATCH)[0], secateurs.apply(model, plan)(**BATCH)[0]
    told = {report.site: report.reason for report in secateurs.explain(fast)}
    assert told["layers.1.layer"] == "no kernel computes it in torch.float16"
    assert got.dtype == torch.float16
    assert relative(got, want) < 5e-3
