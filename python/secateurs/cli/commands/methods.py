"""`secateurs methods`: the pruning methods, or one method and its options."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.arguments import method_name
from secateurs.cli.terminal import OK

SUMMARY = "list the pruning methods, or the options of one"
EXAMPLE = "secateurs methods gradient"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method to explain."""
    parser.add_argument(
        "method", nargs="?", type=method_name, metavar="NAME", help="show the options of one method"
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print the methods, or the options of one, for `--option` of both pruning commands."""
    from secateurs.cli.tables import table
    from secateurs.pruning import METHODS

    if options.method is None:
        rows = [_row(method) for method in METHODS.values()]
        print(table(rows, {key: key for key in rows[0]}))
        return OK, rows
    method = METHODS[options.method]
    result: dict[str, Any] = {**_row(method), "options": option_rows(method.name)}
    print(f"{method.name}: {method.summary}")
    print(f"removes {result['removes']}; needs {result['needs']}\n")
    columns = {"name": "option", "type": "type", "default": "default", "meaning": "meaning"}
    print(table(result["options"], columns))
    return OK, result


def option_rows(name: str) -> list[dict[str, str]]:
    """Describe each option of the method `name` and of its allocators: type, default, meaning."""
    from secateurs.pruning import ALLOCATORS, METHODS

    pruner = METHODS[name].pruner
    rows = _described(pruner)
    if not pruner.chooses:
        for allocator in ALLOCATORS.values():
            rows += [row for row in _described(allocator) if row not in rows]
    return rows


def _row(method: Any) -> dict[str, str]:
    needs = sorted(flag.name.lower() for flag in method.needs if flag.name)
    needs += ["labels"] if method.pruner.labelled else []
    return {
        "name": method.name,
        "removes": ", ".join(sorted(method.produces)),
        "needs": ", ".join(needs) or "nothing",
        "summary": method.summary,
    }


def _described(kind: type) -> list[dict[str, str]]:
    import inspect

    meanings = argument_lines(kind)
    return [
        {
            "name": name,
            "type": str(parameter.annotation).removesuffix(" | None"),
            "default": _shown(parameter.default),
            "meaning": meanings.get(name, ""),
        }
        for name, parameter in inspect.signature(kind).parameters.items()
    ]


def _shown(default: Any) -> str:
    """A default as the command line takes it."""
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def argument_lines(kind: type) -> dict[str, str]:
    """Read the `Args:` of a class's docstring, or of its parents', as one line for each name."""
    import inspect

    lines: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        _, _, rest = inspect.cleandoc(parent.__dict__.get("__doc__") or "").partition("\nArgs:\n")
        section = rest.partition("\n\n")[0]
        names: list[str] = []
        for line in section.splitlines():
            text = line.removeprefix("    ")
            if text.startswith(" "):
                for name in names:
                    lines[name] += f" {text.strip()}"
                continue
            heads, _, meaning = text.partition(": ")
            names = heads.split(", ")
            lines |= dict.fromkeys(names, meaning)
    return lines
