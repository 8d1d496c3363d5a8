"""Rows of results, what they must agree in, and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"

Row = Mapping[str, Any]


def lines_of(name: str) -> list[Row]:
    """The rows of the file of this name."""
    lines = (RESULTS / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read(name: str) -> list[Row]:
    rows = lines_of(name)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise SystemExit(f"{name} holds {len(wrong)} rows whose outputs were wrong")
    return rows


def agree(rows: list[Row], *names: str) -> None:
    """Refuse rows of a table that differ in what is told once."""
    for name in names:
        values = sorted({str(row[name]) for row in rows})
        if len(values) != 1:
            raise SystemExit(f"expected one {name} in all rows, got {', '.join(values)}")


def where(rows: list[Row]) -> str:
    """What all rows of a file have in common, in words."""
    first = rows[0]
    what = "Whole models" if "model" in first else "Single kernels"
    agree(rows, "device", "threads", "torch")
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    isa = next(row["isa"] for row in rows if row["isa"])
    dtypes = ", ".join(dict.fromkeys(map(precision_of, rows)))
    return (
        f"{what}, {dtypes}, {first['device']} ({isa}), {first['threads']} threads, "
        f"torch {first['torch']}, commit {commits}:"
    )


def precision_of(row: Row) -> str:
    """Of the linears; rows from before there was a choice have that of their dtype."""
    return str(row.get("precision", row["dtype"]))


def named(method: str, options: Mapping[str, Any], from_refit: bool = False) -> str:
    """A method, with the options that it ran with, and where its recovery began."""
    words = " ".join([method, *(f"{name}={value}" for name, value in options.items())])
    return f"{words}, re-fitted first" if from_refit else words


def markdown(heads: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *lines])
