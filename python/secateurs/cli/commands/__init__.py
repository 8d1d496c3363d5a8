"""The commands: one file each, with the arguments it takes and what it does; one row each here."""

from __future__ import annotations

import argparse
from typing import Any, Protocol

from secateurs.cli.commands import (
    demo,
    doctor,
    env,
    export,
    frontier,
    inspect,
    measure,
    meta_train,
    methods,
    prune,
    prune_task,
    report,
)


class Command(Protocol):
    """The names in the module of a command. It imports torch only when it runs."""

    SUMMARY: str
    EXAMPLE: str  # a command line that shows what the command is mostly for

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def run(self, options: argparse.Namespace) -> tuple[int, Any]:
        """Do the work; return the exit status and the result, as JSON can hold it. Raises
        SecateursError for bad input."""


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "prune": prune,
    "prune-task": prune_task,
    "meta-train": meta_train,
    "frontier": frontier,
    "measure": measure,
    "export": export,
    "inspect": inspect,
    "report": report,
    "methods": methods,
    "doctor": doctor,
    "env": env,
}
