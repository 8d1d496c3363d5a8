"""`secateurs env`: what the machine and the installation offer."""

from __future__ import annotations

import argparse
from typing import Any

from secateurs.cli.terminal import OK

SUMMARY = "show versions, instruction sets, CUDA, devices, threads"
EXAMPLE = "secateurs env --json machine.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(options: argparse.Namespace) -> tuple[int, Any]:
    """Print the environment."""
    from secateurs.measurement.environment import env_report, format_report

    environment = env_report()
    print(format_report(environment))
    return OK, environment
