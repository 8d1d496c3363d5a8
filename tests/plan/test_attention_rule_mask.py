"""Rules of attention in a plan: one for each head, as pure data."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from safetensors import safe_open

from secateurs import AttentionRuleMask, HeadMask, SparsityPlan
from secateurs.errors import PatternError, PlanError
from secateurs.plan import Site
from secateurs.plan.attention_rules import (
    Dense,
    Global,
    Intersection,
    Local,
    Rule,
    Sinks,
    Strided,
    Union,
    VerticalSlash,
    allowed,
    allowed_pairs,
)
from secateurs.plan.rule_records import RULES

NAME = "layers.0.attention_rules"
SITES = [Site(NAME, "attention_rules", 0, (3,)), Site("layers.0.heads", "heads", 0, (3,))]
EVERY = [
    Dense(),
    Local(2),
    Strided(3),
    Global(1),
    Sinks(4),
    VerticalSlash((5, 1), (0, 7)),
    Local(1) | Sinks(2) & Strided(2),
    (Local(9) | Strided(2)) & Global(0),
]


@dataclass(frozen=True)
class Own(Rule):
    """A rule of somebody else."""


def test_every_rule_survives_a_file(tmp_path):
    plan = SparsityPlan({NAME: AttentionRuleMask(EVERY)})
    plan.save(tmp_path / "p")
    assert SparsityPlan.load(tmp_path / "p") == plan
    assert SparsityPlan.load(tmp_path / "p").masks[NAME].rules == tuple(EVERY)
    assert {type(rule) for rule in EVERY} == {*RULES.values()}
    with safe_open(tmp_path / "p", "pt") as file:
        assert list(file.keys()) == []


def test_plans_of_other_rules_are_other_plans():
    plans = [SparsityPlan({NAME: AttentionRuleMask([rule] * 3)}) for rule in (Local(1), Local(2))]
    assert plans[0] != plans[1]
    assert not AttentionRuleMask([Dense()]).equal(HeadMask(torch.ones(1).bool()))


def test_a_mask_cannot_be_changed():
    rules = [Local(1), Dense()]
    mask = AttentionRuleMask(rules)
    rules[0] = Dense()
    assert mask.rules == (Local(1), Dense())
    with pytest.raises(FrozenInstanceError):
        mask.rules = ()


def test_merged_rules_allow_what_both_allow():
    first = AttentionRuleMask([Local(2), Dense(), Strided(2), Sinks(1)])
    second = AttentionRuleMask([Local(2), Local(1), Dense(), Local(3)])
    merged = first.merge(second)
    assert merged.rules == (Local(2), Local(1), Strided(2), Sinks(1) & Local(3))
    tables = (allowed(mask.rules, 7, 11) for mask in (first, second))
    want = next(tables) & next(tables)
    assert torch.equal(allowed(merged.rules, 7, 11), want)
    assert torch.equal(allowed(second.merge(first).rules, 7, 11), want)


def test_rules_within_rules_of_the_same_kind_are_one():
    assert (Local(1) | Sinks(2)) | Strided(3) == Union((Local(1), Sinks(2), Strided(3)))
    assert Local(1) & (Sinks(2) & Strided(3)) == Intersection((Local(1), Sinks(2), Strided(3)))
    assert Intersection((Local(1) | Sinks(2),)) != Local(1) | Sinks(2)


def test_what_rules_allow_position_by_position():
    """The last of 3 queries is at the last of 5 keys."""
    table = allowed([Sinks(1) | Local(0), Local(3) & Strided(2)], 3, 5)
    for i in range(3):
        for j in range(5):
            at = i + 2
            assert bool(table[0, i, j]) == (j < 1 or at == j)
            assert bool(table[1, i, j]) == (abs(at - j) <= 3 and (at - j) % 2 == 0)


@pytest.mark.parametrize("tokens", [1, 5, 256, 300])
def test_pairs_are_counted(tokens):
    assert allowed_pairs(Dense(), tokens) == tokens**2
    rule = Local(2) | Sinks(3)
    assert allowed_pairs(rule, tokens) == int(allowed([rule], tokens, tokens).sum())


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (Local(1), "expected rules to be a sequence, got a Local"),
        ("local", "expected rules to be a sequence, got 'local'"),
        ([Local(1), "sinks"], "attention rules of the kinds Dense, .* got 'sinks'"),
        ([Own()], "attention rules of the kinds Dense, .* got a Own"),
        ([Local(1) | Own()], "attention rules of the kinds Dense, .* got a Own"),
        ([Rule()], "attention rules of the kinds Dense, .* got a Rule"),
    ],
)
def test_what_no_file_could_hold_is_refused(rules, words):
    with pytest.raises(PlanError, match=words):
        AttentionRuleMask(rules)


def test_rules_nested_too_deep_for_a_file_are_refused(tmp_path):
    rule = Local(1)
    for _ in range(4):
        rule = (rule | Sinks(1)) & Dense()
    plan = SparsityPlan({NAME: AttentionRuleMask([rule])})
    plan.save(tmp_path / "p")
    assert SparsityPlan.load(tmp_path / "p") == plan
    with pytest.raises(PlanError, match="at most 8 within another"):
        AttentionRuleMask([rule | Sinks(1)])


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({NAME: AttentionRuleMask([Dense()] * 2)}, "expected 3 rules at .*, got 2"),
        ({NAME: AttentionRuleMask([])}, "expected 3 rules at .*, got 0"),
        ({NAME: HeadMask(torch.ones(3).bool())}, "takes a mask of kind 'attention_rules'"),
        ({"layers.0.heads": AttentionRuleMask([Dense()] * 3)}, "takes a mask of kind 'heads'"),
        ({"layers.1.attention_rules": AttentionRuleMask([Dense()])}, "does not have"),
    ],
)
def test_validate_says_what_does_not_fit(masks, words):
    SparsityPlan({NAME: AttentionRuleMask([Dense()] * 3)}).validate(SITES, {})
    with pytest.raises(PlanError, match=words):
        SparsityPlan(masks).validate(SITES, {})


def test_merge_refuses_another_number_of_rules_and_another_kind():
    with pytest.raises(PlanError, match="one kind and shape"):
        AttentionRuleMask([Dense()]).merge(AttentionRuleMask([Dense()] * 2))
    with pytest.raises(PlanError, match="one kind and shape"):
        AttentionRuleMask([Dense()]).merge(HeadMask(torch.ones(1).bool()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Local(2**31), "window to be at most 2147483647"),
        (lambda: VerticalSlash((), (2**40,)), "slash to be at most 2147483647"),
        (lambda: Union(()), "Union expects rules"),
        (lambda: Intersection((Local(1), 3)), "Intersection expects rules"),
    ],
)
def test_rules_that_mean_nothing(make, words):
    with pytest.raises(PatternError, match=words):
        make()
