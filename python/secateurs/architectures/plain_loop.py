"""Which modules do nothing with their layers but call one after the other, read from their code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache

from torch import nn


@cache
def plain_loop(stack: type[nn.Module]) -> str | None:
    """Return the attribute that holds the layers of a `stack` whose forward says, in one place,

        for layer in self.layers:  # or: for i, layer in enumerate(self.layers)
            states = layer(states, mask, name=value)

    and nothing else about the layers, `layer` or `i`, with other arguments that are names and thus
    the same for all layers. None for any other module.
    """
    try:
        code = textwrap.dedent(inspect.getsource(inspect.unwrap(stack.forward)))
    except (OSError, TypeError):  # made at run time
        return None
    function = ast.parse(code).body[0]
    loops = [node for node in ast.walk(function) if isinstance(node, _LOOPS)]
    if len(loops) != 1 or not isinstance(loops[0], ast.For):
        return None
    layers, counters = _layers_of(loops[0])
    if layers is None or not _hands_on(loops[0], counters):
        return None
    inside = {id(node) for node in ast.walk(loops[0])}
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    if any(node.id in counters and id(node) not in inside for node in names):
        return None
    read = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
    owners = {id(node.value) for node in read if isinstance(node.ctx, ast.Load)}
    # The module itself goes nowhere, and is only read.
    if not all(id(node) in owners for node in names if node.id == "self"):
        return None
    return layers if sum(node.attr == layers for node in read) == 1 else None


_LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)


def _layers_of(loop: ast.For) -> tuple[str | None, set[str]]:
    """Return the attribute of `self` that a loop is over, and the names that it counts with."""
    over, target = loop.iter, loop.target
    if (
        isinstance(over, ast.Call)
        and isinstance(over.func, ast.Name)
        and over.func.id == "enumerate"
        and len(over.args) == 1
        and not over.keywords
    ):
        over = over.args[0]
        targets = target.elts if isinstance(target, ast.Tuple) else []
    else:
        targets = [target]
    names = {each.id for each in targets if isinstance(each, ast.Name)}
    if not (isinstance(over, ast.Attribute) and ast.unparse(over.value) == "self"):
        return None, names
    return over.attr, names


def _hands_on(loop: ast.For, counters: set[str]) -> bool:
    """Tell whether all that a loop does is `states = layer(states, ...)`."""
    if len(loop.body) != 1 or loop.orelse:
        return False
    step = loop.body[0]
    if not (isinstance(step, ast.Assign) and len(step.targets) == 1):
        return False
    states, call = step.targets[0], step.value
    if not (isinstance(states, ast.Name) and isinstance(call, ast.Call) and call.args):
        return False
    others = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    last = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
    return (
        ast.unparse(call.func) == ast.unparse(last)
        and ast.unparse(call.args[0]) == states.id
        and all(isinstance(other, ast.Name) for other in others)
        and not {other.id for other in others if isinstance(other, ast.Name)}
        & (counters | {states.id})
    )
