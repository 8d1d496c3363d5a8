"""Rules of attention as JSON holds them: `{"rule": "local", "window": 3}`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from secateurs.checks import brief
from secateurs.errors import CheckpointError, PatternError, PlanError
from secateurs.plan.attention_rules import (
    Combined,
    Dense,
    Global,
    Intersection,
    Local,
    Rule,
    Sinks,
    Strided,
    Union,
    VerticalSlash,
)
from secateurs.reading import member, one_line, only, shown, whole

RULES: dict[str, type[Rule]] = {
    "dense": Dense,
    "local": Local,
    "strided": Strided,
    "global": Global,
    "sinks": Sinks,
    "vertical_slash": VerticalSlash,
    "union": Union,
    "intersection": Intersection,
}
DEEPEST = 8  # rules within rules


def record_of(rule: Any, depth: int = 0) -> dict[str, Any]:
    """A rule in JSON's types. Raises PlanError for one of another class, which no file could hold,
    and for rules within rules more than 8 deep."""
    name = next((name for name, kind in RULES.items() if type(rule) is kind), None)
    if name is None:
        known = ", ".join(kind.__name__ for kind in RULES.values())
        raise PlanError(f"expected attention rules of the kinds {known}, got {brief(rule)}")
    if depth > DEEPEST:
        raise PlanError(f"expected attention rules at most {DEEPEST} within another, got more")
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    if isinstance(rule, Combined):
        values["rules"] = [record_of(part, depth + 1) for part in rule.rules]
    listed = {name: [*v] if isinstance(v, tuple) else v for name, v in values.items()}
    return {"rule": name, **listed}


def rule_of(record: Any, where: str) -> Rule:
    """The rule in a stranger's record. Raises CheckpointError unless `record_of` gives just that of
    it."""
    rule = _read(record, where, 0)
    if record_of(rule) != record:
        raise CheckpointError(f"expected positions in order, each once, in {where}")
    return rule


def _read(record: Any, where: str, depth: int) -> Rule:
    if not isinstance(record, dict):
        raise CheckpointError(f"expected an object for each rule in {where}, got {shown(record)}")
    if depth > DEEPEST:
        raise CheckpointError(f"expected rules at most {DEEPEST} within another in {where}")
    kind = RULES[member(record, "rule", f"one of {', '.join(RULES)}", _is_name, where)]
    only(record, {"rule", *(field.name for field in fields(kind))}, where)
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(kind)):
        if issubclass(kind, Combined):
            parts = member(record, name, "a list of rules", _is_list, where)
            values[name] = tuple(_read(part, where, depth + 1) for part in parts)
        elif kind is VerticalSlash:
            values[name] = tuple(member(record, name, "a list of positions", _is_whole, where))
        else:
            values[name] = member(record, name, "a whole number", whole, where)
    try:
        return kind(**values)
    except PatternError as error:
        raise CheckpointError(f"{where} is damaged: {one_line(error)}") from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value in RULES


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and all(map(whole, value))
