"""The rows of a run and how its steps ended, as tables to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.running import Outcome

Row = Mapping[str, Any]
CEILINGS = {
    "copy_gb_s": "copy GB/s",
    "l2_gb_s": "L2 GB/s",
    "shared_gb_s": "shared memory GB/s",
    "roof_tflop_s": "F.linear TFLOP/s",
}


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file; a line that was cut off is left
    out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def report(rows: Iterable[Row], outcomes: Iterable[Outcome]) -> str:
    """Return the device with its ceilings, the steps, and a line for each problem and peer with a
    column for each backend of ours."""
    rows = list(rows)
    parts = []
    if rows:
        first = rows[0]
        ceilings = [f"{first[key]:.0f} {name}" for key, name in CEILINGS.items() if first.get(key)]
        parts.append(f"{', '.join([first['device'], *ceilings])}, commit {first['commit']}\n")
    parts.append("| step | how it ended | s |\n|---|---|---|")
    parts += [f"| {o.name} | {o.told} | {o.seconds:.0f} |" for o in outcomes]
    return "\n".join([*parts, *(_problems(rows) if rows else ())]) + "\n"


def _problems(rows: list[Row]) -> list[str]:
    """Return the table of the rows."""
    backends = sorted({row["backend"] for row in rows})
    lines: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in rows:
        lines.setdefault(_problem(row), {}).setdefault(row["backend"], []).append(row)
    heads = ["problem", "shape", "block", "density", "peer", "peer ms"]
    heads += [f"{name} ms, speed-up" for name in backends]
    table = ["", _line(heads), "|---" * len(heads) + "|"]
    for problem, found in lines.items():
        peers = [row["baseline_ms"] for group in found.values() for row in group]
        cells = [_best(found.get(name, [])) for name in backends]
        table.append(_line([*problem, f"{min(peers):.4f}", *cells]))
    return table


def _problem(row: Row) -> tuple[str, ...]:
    name = row.get("op") or row["model"]
    facts = [name, row.get("layer"), row.get("pattern")]
    if row["dtype"] != "bfloat16":
        facts.append(row["dtype"])
    return (
        " ".join(fact for fact in facts if fact).replace("|", "\\|"),
        "x".join(map(str, row["shape"])),
        "x".join(map(str, row.get("block") or ())),
        f"{row.get('density') or 1:.2f}",
        row["baseline"],
    )


def _best(rows: list[Row]) -> str:
    """Return the fastest of a backend's ways with the operands; a wrong one is said to be."""
    if not rows:
        return ""
    row = min(rows, key=lambda row: row["ms"])
    way = f" ({row['operands']})" if row.get("operands") else ""
    wrong = "" if all(row["ok"] for row in rows) else " WRONG"
    return f"{row['ms']:.4f}, {row['speedup']:.2f}x{way}{wrong}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
