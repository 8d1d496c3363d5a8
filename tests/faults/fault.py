"""One fault of a table: a piece of a file, what it becomes, and the test that must see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`old`, which stands once in `file`, becomes `new`; then `test` fails.

    Args:
        file: from the root of the repository; a fault below `csrc/cpu` takes a build.
        test: what pytest is given, words with spaces between.
    """

    file: str
    old: str
    new: str
    test: str


def faults_in(file: str, *rows: tuple[str, str, str]) -> tuple[Fault, ...]:
    return tuple(Fault(file, old, new, f"tests/{test}") for old, new, test in rows)
