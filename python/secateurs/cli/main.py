"""The command `secateurs`: it finds the command that is asked for, and answers for its end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from secateurs import __version__
from secateurs.cli.commands import COMMANDS
from secateurs.cli.paths import check_file
from secateurs.cli.terminal import BAD_INPUT, FAILED, INTERRUPTED, OK, tell
from secateurs.errors import SecateursError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "OK", "main", "parser"]

EXIT_STATUSES = f"""exit status:
  {OK:<5}the work was done, and what it checked is right
  {FAILED:<5}it was done, and a check failed: of the demo, or a problem that the doctor found
  {BAD_INPUT:<5}the command line or its input cannot be used, as one sentence says
  {INTERRUPTED:<5}interrupted

`secateurs COMMAND --help` tells what a command takes, with an example."""


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line, with one subparser for each row of COMMANDS."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", metavar="FILE", help="also write the result to this file")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bars"
    )
    top = argparse.ArgumentParser(
        prog="secateurs",
        description="Prune trained Transformers and run them faster.",
        epilog=EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"secateurs {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        # Without abbreviations: a new argument would change what an old one's beginning means.
        added = commands.add_parser(
            name,
            parents=[common],
            help=command.SUMMARY,
            description=command.SUMMARY,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only on success."""
    words = _forwarded([*(sys.argv[1:] if arguments is None else arguments)])
    commands = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        _complete(commands)
    options = commands.parse_args(words)
    try:
        check_file("--json", options.json)
        status, result = options.run(options)
        if options.json:
            from secateurs.cli.tables import write_json

            write_json(options.json, result)
    except SecateursError as error:
        if options.debug:
            raise
        tell(options, str(error))
        return BAD_INPUT
    except OSError as error:  # of a path, where nobody foresaw it
        if options.debug:
            raise
        from secateurs.checks import first_line

        tell(options, first_line(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return int(status)


def _complete(commands: argparse.ArgumentParser) -> None:
    """Answer the shell, which ends the process; where argcomplete is missing, do nothing."""
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(commands)


def _forwarded(words: list[str]) -> list[str]:
    """Turn `prune --task`, as version 0.1 spelled it, into `prune-task --task`."""
    if words[:1] == ["prune"] and any(w == "--task" or w.startswith("--task=") for w in words):
        print(
            "secateurs prune: --task is now a command of its own, prune-task; the old spelling "
            "goes with the next release",
            file=sys.stderr,
        )
        return ["prune-task", *words[1:]]
    return words


if __name__ == "__main__":
    sys.exit(main())
