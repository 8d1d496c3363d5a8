"""PruningTrainer: what the Trainer of transformers does must reach the session, and the other way
round."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from support.training import STEPS, TRAINED, classifier, labelled, trainer
from torch.nn import functional as F

from secateurs import apply, convert
from secateurs.errors import CheckpointError, DataError, MethodError
from secateurs.pruning.session import Session
from secateurs.training.trainer import STATE, Distillation


@pytest.fixture(autouse=True)
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()


def test_training_by_trainer_decides_and_saves_stock_names(tmp_path):
    model = classifier()
    names = set(model.state_dict())
    with Session(model, "seven", budget="weights=0.5") as session:
        trainer(model, tmp_path, session, save_strategy="steps", save_steps=STEPS).train()
        assert session.step == STEPS
    density = float(
        torch.cat([m.keep.flatten() for m in session.plan.masks.values()]).float().mean()
    )
    assert density == pytest.approx(0.5, abs=1e-4)
    reloaded = type(model).from_pretrained(tmp_path / f"checkpoint-{STEPS}")
    assert set(reloaded.state_dict()) == names


@pytest.mark.parametrize("method", TRAINED)
def test_resuming_goes_on_exactly(method, tmp_path):
    budget = TRAINED[method][0]
    saving = {"save_strategy": "steps", "save_steps": 3}
    results = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        model = classifier()
        with Session(model, method, budget=budget) as session:
            run = trainer(model, tmp_path, session, **saving)
            run.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        results.append((session.plan, copy.deepcopy(model.state_dict())))
    (plan, state), (again, resumed) = results
    assert again == plan
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_a_checkpoint_without_its_session_is_refused(tmp_path):
    model = classifier()
    saving = {"save_strategy": "steps", "save_steps": 3}
    with Session(model, "dsp", budget="heads=0.5") as session:
        trainer(model, tmp_path, session, **saving).train()
    whole, broken = tmp_path / "checkpoint-3", tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / STATE).write_bytes((whole / STATE).read_bytes()[:50])
    for path, budget, words in (
        (broken, "heads=0.5", "not written to its end, or files of it are missing or altered"),
        (whole, "heads=0.25", "expected a state with budget"),
    ):
        with Session(classifier(), "dsp", budget=budget) as session:
            other = trainer(session.model, tmp_path / "other", session, **saving)
            with pytest.raises(CheckpointError, match=words):
                other.train(resume_from_checkpoint=str(path))
    with Session(classifier(), "dsp", budget="heads=0.5") as session:  # the good one still is
        trainer(session.model, tmp_path, session).train(resume_from_checkpoint=str(whole))
        assert session.step == STEPS


def test_gradients_are_read_complete_and_before_clipping(tmp_path):
    """Two micro-batches make one gradient, and a tiny clip does not shrink what the method sees."""
    seen = {}
    for accumulation, size, clip in ((1, 8, 1.0), (2, 4, 1.0), (1, 8, 1e-4), (1, 8, 0.0)):
        model = classifier()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        with Session(model, "seven", budget="weights=0.5", begin=0.0) as session:
            session.pruner.after_backward = lambda step, key=(accumulation, clip), m=model: (
                seen.setdefault(key, m.classifier.dense.weight.grad.clone())
            )
            trainer(
                model, tmp_path, session, gradient_accumulation_steps=accumulation,
                per_device_train_batch_size=size, max_grad_norm=clip, max_steps=1,
                train_sampling_strategy="sequential",
            ).train()  # fmt: skip
        assert session.step == 1
    first = seen[1, 1.0]
    assert float(first.norm()) > 1e-3
    for key in seen:
        assert relative(seen[key], first) < 1e-5, key


def test_gradients_are_clipped_all_the_same(tmp_path):
    model = classifier()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    with Session(model, "seven", budget="weights=0.5") as session:
        trainer(
            model, tmp_path, session, optim="sgd", learning_rate=1.0, max_grad_norm=1e-2,
            max_steps=9, lr_scheduler_type="constant",
        ).train()  # fmt: skip
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 0 < float((after - before).norm()) <= 9 * 1.001e-2


def test_a_penalty_weighs_the_same_under_accumulation(tmp_path):
    """Without gates, the locations get gradients from the penalty alone."""
    moved = []
    for accumulation, size in ((1, 8), (2, 4), (4, 2)):
        model = classifier()
        session = Session(model, "voita", budget="heads=0.5", penalty=1.0, lr=0.01)
        session.pruner.before_forward = lambda inputs: None
        with session:
            start = session.pruner.location.detach().clone()
            gradients = []
            session.pruner.after_backward = lambda step, s=session, g=gradients: g.append(
                s.pruner.location.grad.clone()
            )
            trainer(
                model, tmp_path, session, gradient_accumulation_steps=accumulation,
                per_device_train_batch_size=size, max_steps=1,
            ).train()  # fmt: skip
            assert not torch.equal(session.pruner.location, start)
        moved.append(gradients[0])
    assert relative(moved[1], moved[0]) < 1e-5
    assert relative(moved[2], moved[0]) < 1e-5


def test_overflow_leaves_the_step_out(tmp_path):
    model = classifier()
    with Session(model, "dsp", budget="heads=0.5") as session:
        run = trainer(model, tmp_path, session)
        losses = iter([1.0, float("inf"), *[1.0] * STEPS])
        plain = run.compute_loss
        states = []

        def sometimes_infinite(*arguments, **options):
            states.append(copy.deepcopy(model.state_dict()))
            return plain(*arguments, **options) * next(losses)

        run.compute_loss = sometimes_infinite
        run.train()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert session.step == STEPS


def test_a_schedule_longer_than_training_is_refused(tmp_path):
    with Session(classifier(), "dsp", budget="heads=0.5", cooldown=25_000) as session:
        with pytest.raises(MethodError, match="cooldown that ends before the training's 9 steps"):
            trainer(session.model, tmp_path, session).train()
        session.begin(100_000)


def test_each_training_of_a_model_has_its_own_precision(tmp_path):
    """A model that recovers was trained before, not always at the same precision."""
    model, seen = classifier(), []
    model.roberta.encoder.layer[0].output.dense.register_forward_hook(
        lambda module, args, out: seen.append(out.dtype)
    )
    wanted = [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]
    for dtype in wanted:
        trainer(model, tmp_path, max_steps=1, bf16=dtype == torch.bfloat16).train()
    assert seen == wanted


@pytest.mark.parametrize("method", ["platon", "sensi_bert", "mlpruning", "dcil"])
def test_methods_train_in_bfloat16_on_accumulated_gradients(method, tmp_path):
    model, batch = classifier(), labelled(1)[0]
    halves = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with Session(model, method, budget=TRAINED[method][0]) as session:
        trainer(model, tmp_path, session, bf16=True, **halves).train()
        gated = answer(model.eval(), batch)
    assert session.step == STEPS
    assert relative(gated, answer(apply(model, session.plan), batch)) < 1e-5


def test_bfloat16_autocast(tmp_path):
    model = classifier()
    with Session(model, "snip_identity", budget="modules=0.5") as session:
        trainer(model, tmp_path, session, bf16=True).train()
    batch = {k: v for k, v in labelled(1)[0].items() if k != "labels"}
    fast = convert(model.eval(), session.plan)  # in float32 again
    assert relative(answer(fast, batch), answer(apply(model, session.plan), batch)) < 1e-5
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert session.plan.masks


def test_the_method_tells_the_log(tmp_path):
    with Session(classifier(), "dsp", budget="heads=0.5") as session:
        run = trainer(session.model, tmp_path, session, logging_strategy="steps", logging_steps=1)
        run.train()
    logged = [entry for entry in run.state.log_history if "temperature" in entry]
    assert len(logged) >= STEPS
    assert logged[0]["temperature"] > logged[STEPS - 1]["temperature"]


def outputs(batch, **changes):
    """Answers of a student and a teacher that have hidden states and maps."""
    models = []
    for scale in (1.0, 1.3):
        model = tiny_model("roberta", **changes)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(scale)
        models.append(model.double()(**batch, output_hidden_states=True, output_attentions=True))
    return models


def test_distillation_terms_against_their_formulas():
    batch = labelled(1)[0]
    student, teacher = outputs(batch)
    real = batch["attention_mask"].bool()
    got = Distillation(logits=2.0, temperature=3.0).loss(student, teacher, batch)
    p = (teacher.logits / 3).softmax(-1)
    want = 2 * 9 * (p * (p.log() - (student.logits / 3).log_softmax(-1))).sum(-1).mean()
    assert relative(got, want) < 1e-5
    got = Distillation(logits=0, hidden=0.5).loss(student, teacher, batch)
    pairs = zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    want = 0.5 * sum((a[real] - b[real]).square().sum() / b[real].square().sum() for a, b in pairs)
    assert relative(got, want) < 1e-5
    got = Distillation(logits=0, attention=4.0).loss(student, teacher, batch)
    maps = zip(student.attentions, teacher.attentions, strict=True)
    rows = [(a.transpose(1, 2)[real] - b.transpose(1, 2)[real]).square().mean() for a, b in maps]
    assert relative(got, 4 * torch.stack(rows).mean()) < 1e-5
    alike = Distillation(hidden=1.0, attention=1.0).loss(teacher, teacher, batch)
    assert float(alike.detach()) == pytest.approx(0, abs=1e-6)


def test_a_teacher_of_another_shape_is_refused():
    batch = labelled(1)[0]
    student, _ = outputs(batch)
    _, other = outputs(batch, num_hidden_layers=2)
    with pytest.raises(DataError, match="expected hidden_states of one shape from student and tea"):
        Distillation(hidden=1.0).loss(student, other, batch)
    only_logits = Distillation().loss(student, other, batch)
    assert torch.isfinite(only_logits)


def test_a_student_comes_closer_to_its_teacher(tmp_path):
    teacher, model, batch = classifier(), tiny_model("roberta"), labelled(1)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))

    def distance() -> float:
        with torch.no_grad():
            a, b = model.eval()(**batch).logits, teacher(**batch).logits
        return float(
            F.kl_div(a.log_softmax(-1), b.log_softmax(-1), log_target=True, reduction="batchmean")
        )

    before = distance()
    only = Distillation(labels=0.0, hidden=1.0)
    trainer(model, tmp_path, teacher=teacher, distillation=only, max_steps=40).train()
    assert distance() < 0.5 * before
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.filterwarnings("ignore")
def test_two_processes_decide_alike(tmp_path):
    """Each process sees other data; scores are averaged before any of them decides."""
    script = Path(__file__).parents[1] / "support" / "two_processes.py"
    paths = [
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert ranks[0]["seen"] != ranks[1]["seen"]
    assert all(rank["mean"].tolist() == [0.5, 1.5] for rank in ranks)
    for method, first in ranks[0]["results"].items():
        second = ranks[1]["results"][method]
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{method}: {name}"
