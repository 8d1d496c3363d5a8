"""Heads of every kind, and batches, budgets and teachers that are of no use to them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.heads import (
    BATCH,
    CHOICES,
    CLASSES,
    ENDS,
    HEADS,
    IDS,
    distilled,
    headed,
    pruned,
    trace,
)
from support.tiny_models import tiny_model
from torch import nn

import secateurs
from secateurs import Budget, Gates, Session
from secateurs.data.batches import main_output
from secateurs.errors import (
    BudgetError,
    DataError,
    MethodError,
    SecateursError,
)
from secateurs.pruning.methods.gradient import GradientPruner

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
