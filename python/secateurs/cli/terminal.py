"""Exit statuses for the shell, sentences for the person in front of it."""

from __future__ import annotations

import argparse
import sys

# argparse answers a command line it cannot read with 2, and we one whose input we cannot use.
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def tell(options: argparse.Namespace, sentence: str) -> None:
    """Print one sentence of a command to stderr."""
    print(f"secateurs {options.command}: {sentence}", file=sys.stderr)


def printable(text: str) -> str:
    """A stranger's text, with a mark in place of each character that cannot be printed, and might
    turn or hide what is beside it, or steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def quiet() -> None:
    """Silence transformers, which reports every weight it reads: our own progress bars are
    enough."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
