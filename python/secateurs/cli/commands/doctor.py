"""`secateurs doctor`: is this machine fast for pruned models, and what is in the way."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.arguments import seconds
from secateurs.cli.terminal import FAILED, OK

SUMMARY = "check kernels, threads, packages and noise, and time one linear in each precision"
EXAMPLE = "secateurs doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument(
        "--min-time",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="time linears for at least so long (default: 2)",
    )


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print rates and findings; fail if one of them is a problem."""
    from secateurs.cli import machine_check
    from secateurs.cli.tables import table

    rates = machine_check.rates(options.min_time)
    found = machine_check.findings(rates)
    told = machine_check.report(rates, found)
    rows, inputs, outputs = machine_check.SHAPE
    print(f"a linear of {inputs} inputs and {outputs} outputs, {rows} tokens:")
    print(table(told["rates"], {"name": "linear", "ms": "ms:.2f", "gops": "GOP/s:.0f"}))
    print()
    print(table(told["findings"], {"level": "", "subject": "subject", "sentence": "finding"}))
    problem = any(finding.level == machine_check.PROBLEM for finding in found)
    return FAILED if problem else OK, told
