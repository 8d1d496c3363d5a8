"""The contract every method that trains keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from support.models import answer, relative
from support.tiny_models import tiny_model
from support.training import (
    CASES,
    TRAINED,
    classifier,
    interrupted,
    labelled,
    optimizer,
    steps,
    trained,
)

from secateurs import Budget, HeadMask, SparsityPlan, apply, convert, find_sites
from secateurs.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    FamilyError,
    MethodError,
    PlanError,
)
from secateurs.plan.masks import TiledMask
from secateurs.pruning.session import Session

STEPS = 20


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)  # dropout


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def case(request) -> tuple[str, str]:
    return request.param


def test_the_budget_is_met_and_the_gated_model_is_the_masked_and_the_converted_one(case):
    method, budget = case
    model, batch = classifier(), labelled(1)[0]
    with Session(model, method, budget=budget, steps=STEPS) as session:
        trained(session, STEPS)
        model.eval()
        gated = answer(model, batch)
    plan, sites = session.plan, find_sites(model)
    plan.validate(sites, sites.fingerprint())
    for kind, fraction in Budget.parse(budget).asked().items():
        ends = {"modules": (".attention", ".ffn")}.get(kind, f".{kind}")
        masks = [
            mask
            for name, mask in plan.masks.items()
            if (isinstance(mask, TiledMask) if kind in Budget.OF_LINEARS else name.endswith(ends))
        ]
        gone = sum(int((~mask.keep).sum()) for mask in masks)
        assert gone
        assert abs(gone - fraction * sum(mask.keep.numel() for mask in masks)) <= 0.5
    want = answer(apply(model, plan), batch)
    if not session.pruner.soft_gates:
        assert relative(gated, want) < 1e-5
    assert relative(answer(convert(model, plan), batch), want) < 1e-5
    assert plan.notes["method"] == method


def test_leaving_restores_gates_hooks_and_gradients(case):
    method, budget = case
    model = classifier()
    names = list(model.state_dict())
    with Session(model, method, budget=budget, steps=STEPS) as session:
        trained(session, STEPS)
        assert list(model.state_dict()) == names, "a checkpoint written now has stock names"
        model.eval()
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_resumed_session_goes_on_to_the_bit(case, tmp_path):
    """Interrupted at any third, a run ends as the one that was not."""
    plan, state = interrupted(*case, STEPS, (), tmp_path / "state")
    again, resumed = interrupted(*case, STEPS, (5, 14), tmp_path / "state")
    assert again == plan
    assert all(torch.equal(state[name], resumed[name]) for name in state)


def test_one_seed_gives_one_plan(case):
    method, budget = case
    plans = []
    for _ in range(2):
        torch.manual_seed(1)
        with Session(classifier(), method, budget=budget, steps=STEPS, seed=4) as session:
            trained(session, STEPS)
        plans.append(session.plan)
    assert plans[0] == plans[1]


def test_steps_without_finite_gradients_are_left_out(case):
    """As after an overflow in half precision: neither weights nor scores see the step."""
    method, budget = case
    model, batches = classifier(), labelled()
    with Session(model, method, budget=budget, steps=STEPS) as session:
        adam = optimizer(session)
        for _ in steps(session, adam, batches, 6):
            pass
        before = copy.deepcopy((model.state_dict(), session.pruner.state_dict()))
        model.train()
        (model(**batches[0]).loss + session.penalty()).backward()
        if session.pruner.trains_model:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        session.after_backward()
        adam.step()
        session.after_step()
        adam.zero_grad()
        assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
        assert same(without_u(session.pruner.state_dict()), without_u(before[1]))
        for _ in steps(session, adam, batches, STEPS - 7, 7):
            pass
    assert session.plan.masks


def test_an_overflow_where_a_schedule_ends_puts_its_end_off(case):
    """The methods' last decisions before the training goes on with them are due at its 13th and
    14th steps, which are left out: they come a step later, and the trained model is the pruned
    one."""
    method, budget = case
    model, batches = classifier(), labelled()
    with Session(model, method, budget=budget, steps=STEPS) as session:
        adam = optimizer(session)
        for i in range(STEPS):
            model.train()
            (model(**batches[i % 4]).loss + session.penalty()).backward()
            session.after_backward(finite=False if i in (12, 13) else None)
            adam.step()
            session.after_step()
            adam.zero_grad()
        model.eval()
        gated = answer(model, batches[0])
    if not session.pruner.soft_gates:
        assert relative(gated, answer(apply(model, session.plan), batches[0])) < 1e-5


def test_the_last_mask_comes_late_but_comes_where_masks_are_rare():
    """The schedule ends at step 14, and no mask is made before."""
    model, batch = classifier(), labelled(1)[0]
    with Session(model, "seven", budget="weights=0.7", steps=STEPS, every=50) as session:
        for i in steps(session, optimizer(session), labelled(), STEPS - 1):
            if i == 12:
                session.after_backward(finite=False)
                session.after_step()
        model.eval()
        gated = answer(model, batch)
    assert relative(gated, answer(apply(model, session.plan), batch)) < 1e-5


def test_a_removal_whose_step_is_left_out_comes_with_the_next():
    model = classifier()
    options = {"budget": "modules=0.5", "steps": STEPS, "rounds": 1}
    with Session(model, "snip_identity", **options) as session:
        alive = []
        for i in steps(session, optimizer(session), labelled(), STEPS):
            alive.append(session.pruner.figures()["alive"])
            if i == 12:  # the only removal is due after the next one
                session.after_backward(finite=False)
                session.after_step()
    assert alive == [1.0] * 13 + [0.5] * 7


def without_u(state):
    """Singular vectors move in the forward pass, whatever comes of it."""
    return {name: value for name, value in state.items() if name != "u"}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def test_nothing_but_overflow_ends_the_training():
    model = classifier()
    with Session(model, "dsp", budget="heads=0.5", steps=100) as session:
        for _ in range(24):
            session.after_backward(finite=False)
            session.after_step()
        with pytest.raises(MethodError, match="25 steps in a row; the last checkpoint is still g"):
            session.after_backward(finite=False)


def test_a_session_resumed_as_another_is_refused():
    def session(method, seed=0, **options):
        return Session(classifier(), method, steps=STEPS, seed=seed, **options)

    with session("dsp", budget="heads=0.5") as first:
        state = first.state_dict()
    for other, word in (
        (session("dsp", budget="heads=0.25"), "budget"),
        (session("voita", budget="heads=0.5"), "method"),
        (session("dsp", budget="heads=0.5", seed=1), "seed"),
        (session("dsp", budget="heads=0.5", lr=0.1), "options"),
    ):
        with pytest.raises(CheckpointError, match=f"expected a state with {word}"), other:
            other.load_state_dict(state)


def test_a_decided_plan_stays_while_the_rest_recovers():
    model, batch = classifier(), labelled(1)[0]
    keep = torch.tensor([False, True, True, False])
    plan = SparsityPlan({"layers.1.heads": HeadMask(keep)})
    before = copy.deepcopy(model.state_dict())
    with Session(model, plan, steps=3) as session:
        trained(session, 3)
        model.eval()
        gated = answer(model, batch)
    assert session.plan == plan
    assert relative(gated, answer(apply(model, plan), batch)) < 1e-5
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    name = "roberta.encoder.layer.1.attention.self.value.weight"
    assert name in changed
    gone = ~keep.repeat_interleave(16)
    assert torch.equal(model.state_dict()[name][gone], before[name][gone])


@pytest.mark.parametrize(
    ("method", "budget", "options", "error", "words"),
    [
        ("guess", "heads=0.5", {}, MethodError, "expected a method in"),
        ("gradient", "heads=0.5", {}, MethodError, "decides without training"),
        ("dsp", None, {}, MethodError, "expects a budget"),
        ("dsp", "heads=0.5", {"speed": 3}, MethodError, "got 'speed'"),
        ("dsp", "blocks=0.5", {}, MethodError, "the budget names blocks"),
        ("dsp", "heads=0.01", {}, BudgetError, "which keeps 12"),
        ("dsp", "heads=0.99", {}, BudgetError, "between 1 and 11 of 12 heads.*keeps 0"),
        ("dsp", "heads=13", {}, BudgetError, "between 0 and 1, got 13"),
        ("dsp", "heads=0.5", {"t0": 1, "t1": 2}, MethodError, "temperatures that fall"),
        ("dsp", "heads=0.5", {"t0": 0.01}, MethodError, "temperatures that fall.*0.01 and 0.05"),
        ("dsp", "heads=0.5", {"schedule": "long"}, MethodError, "auto, published, short"),
        (
            "dsp",
            "heads=0.5",
            {"schedule": "short", "straight_through": True},
            MethodError,
            "no short schedule",
        ),
        ("dsp", "heads=0.5", {"cooldown": 2}, MethodError, "after the 2 steps .* step 2"),
        ("dsp", "heads=0.5", {"cooldown": 20}, MethodError, "expected a cooldown that ends before"),
        ("voita", "heads=0.99", {}, BudgetError, "keeps 0"),
        ("voita", "heads=0.5", {"lr": 0}, MethodError, "lr above 0"),
        ("dcil", "weights=0.5", {"every": 0}, MethodError, "at least one step"),
        ("dcil", "weights=0.5", {"end": 1.2}, MethodError, "ends at step 24"),
        ("gradual_magnitude", "weights=0.5", {"every": 0}, MethodError, "at least one step"),
        ("gradual_magnitude", "weights=0.5", {"end": 1.2}, MethodError, "ends at step 24"),
        ("gradual_magnitude", "blocks=0.5,block=48", {}, BudgetError, "does not divide"),
        ("mlpruning", "heads=0.5", {"lr": 0}, MethodError, "lr above 0"),
        ("mlpruning", "heads=0.5", {"whole": 0.9}, MethodError, "at most the whole training"),
        ("mlpruning", "heads=0.5", {"whole": 0.01, "tiled": 0.01}, MethodError, "of some steps"),
        ("mlpruning", "blocks=0.5,block=48", {}, BudgetError, "does not divide"),
        ("mlpruning", "heads=0.5,blocks=0.9,block=32", {}, BudgetError, "heads as wide as blocks"),
        ("mlpruning", "neurons=0.9,blocks=0.2,block=16", {}, BudgetError, "keeps 269 of 208"),
        ("platon", "weights=0.5", {"decay": 1}, MethodError, "decay from 0 to below 1"),
        ("platon", "weights=0.5", {"window": -1}, MethodError, "a window of at least 0 steps"),
        ("platon", "weights=0.5", {"window": 7}, MethodError, "after 2 windows of 7 .* step 14"),
        ("platon", "weights=0.5", {"end": 1.2}, MethodError, "ends at step 24"),
        ("platon", "blocks=0.5,block=48", {}, BudgetError, "does not divide"),
        ("sensi_bert", "heads=0.5", {"order": "size"}, MethodError, "sensitivity, magnitude"),
        ("sensi_bert", "heads=0.5", {"rounds": 0}, MethodError, "one round or more"),
        ("sensi_bert", "heads=0.5", {"trim": 0.9}, MethodError, "at most the whole training"),
        ("sensi_bert", "heads=0.5", {"rounds": 7}, MethodError, "7 removals, got one of 20 steps"),
        ("seven", "weights=0.5", {"end": 1.2}, MethodError, "ends at step 24"),
        ("seven", "weights=0.5", {"decay": 1}, MethodError, "below 1"),
        ("seven", "weights=0.5", {"every": 0}, MethodError, "at least one step"),
        ("seven", "blocks=0.5,block=48", {}, BudgetError, "does not divide"),
        ("snip_identity", "modules=0.5", {"estimator": "l7"}, MethodError, "l2, linf, rel, taylor"),
        ("snip_identity", "modules=0.5", {"modules_in": "macs"}, MethodError, "units, parameters"),
        (
            "snip_identity",
            "heads=0.5",
            {"modules_in": "parameters"},
            MethodError,
            "a budget of modules to count",
        ),
        ("snip_identity", "modules=0.5", {"rounds": 0}, MethodError, "one round or more"),
        ("snip_identity", "modules=0.5", {"begin": 0.9}, MethodError, "to a later one"),
        ("admm_pattern", "patterns=0.5", {"share": 0.1}, MethodError, "at least 6 steps"),
        ("admm_pattern", "patterns=0.5", {"bits": 9}, MethodError, "2 to 8 bits"),
        ("admm_pattern", "patterns=0.5", {"bits": 4}, MethodError, "at least 6 steps.*got 3 of"),
        ("admm_pattern", "patterns=0.5,vector=48", {}, BudgetError, "does not divide"),
    ],
)
def test_bad_input_is_refused_in_words_and_leaves_the_model_alone(
    method, budget, options, error, words
):
    model = classifier()
    with (
        pytest.raises(error, match=words),
        Session(model, method, budget=budget, steps=STEPS, **options),
    ):
        pass
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_session_lacks_is_said():
    model = classifier()
    with Session(model, "dsp", budget="heads=0.5") as session:
        with pytest.raises(MethodError, match="call begin"):
            session.after_backward()
        with pytest.raises(MethodError, match="at least one step, got 0"):
            session.begin(0)
        with pytest.raises(MethodError, match="expected a session that has trained"):
            _ = session.plan
    with pytest.raises(MethodError, match="has trained and was left, got one at step 0"):
        _ = session.plan
    plan = SparsityPlan({"layers.9.heads": HeadMask(torch.ones(4).bool())})
    with pytest.raises(PlanError, match="does not have"), Session(model, plan):
        pass
    plan = SparsityPlan({"layers.0.heads": HeadMask(torch.ones(5).bool())})
    with pytest.raises(PlanError, match=r"\(4,\)"), Session(model, plan):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_family_we_do_not_know_is_refused():
    from transformers import LongformerConfig, LongformerModel

    tiny = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(FamilyError, match="got 'longformer'"):
        Session(LongformerModel(LongformerConfig(**tiny)), "dsp", budget="heads=0.5")


WHOLE_LINEARS = ("seven", "platon", "dcil", "admm_pattern", "gradual_magnitude")


@pytest.mark.parametrize("method", TRAINED)
def test_every_family_can_be_trained(method, family, model, batch):
    """Only gates and weights of sites are used, so the loss may be anything."""
    if family == "gpt2" and method in WHOLE_LINEARS:
        with (
            pytest.raises(MethodError, match=r"layers\.0\.query is a part of a larger one"),
            Session(model, method, budget=TRAINED[method][0], steps=STEPS),
        ):
            pass
        return
    with Session(model, method, budget=TRAINED[method][0], steps=STEPS) as session:
        adam = optimizer(session)
        if method == "dcil":  # its second path has a loss of its own
            model(**batch)
            with pytest.raises(DataError, match="expected labels among the model's keyword inputs"):
                session.penalty()
            return
        for _ in range(8):
            model.train()
            (model(**batch)[0].square().mean() + session.penalty()).backward()
            session.after_backward()
            adam.step()
            session.after_step()
            adam.zero_grad()
        model.eval()
    plan = session.plan
    assert relative(answer(convert(model, plan), batch), answer(apply(model, plan), batch)) < 1e-5


def test_the_model_of_a_pipelined_method_is_frozen():
    model = tiny_model("roberta")
    before = copy.deepcopy(model.state_dict())
    with Session(model, "dsp", budget="heads=0.5", steps=STEPS, pipelined=True) as session:
        assert not any(p.requires_grad for p in model.parameters())
        start = session.pruner.importance.detach().clone()
        trained(session, STEPS)
        assert not torch.equal(session.pruner.importance, start)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
