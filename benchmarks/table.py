"""Writes the tables of docs/results.md, and that of evidence in docs/methods.md, from the JSON
lines in benchmarks/results/.

python benchmarks/table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.tables.evidence import evidence_table
from benchmarks.tables.quality import (
    beside_table,
    frontier_parts,
    how_fitted,
    how_ranked,
    how_rounded,
    how_trained,
    languages_table,
    methods_table,
    one_shot_table,
    rounding_table,
)
from benchmarks.tables.rows import RESULTS, lines_of, read, where
from benchmarks.tables.speeds import (
    families_table,
    how_asked,
    how_built,
    kernels_tables,
    missed_goals,
    models_tables,
    targets_table,
)

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results: python benchmarks/table.py -->", "<!-- /results -->"

MODELS = (
    "models_precisions.jsonl",
    "models.jsonl",
    "models_xeon_bf16.jsonl",
    "models_xeon_fp32.jsonl",
)
KERNELS = (
    "kernels.jsonl",
    "kernels_int8.jsonl",
    "kernels_int8_vectors.jsonl",
    "kernels_xeon_bf16_linears.jsonl",
    "kernels_xeon_bf16.jsonl",
    "kernels_xeon_fp32.jsonl",
)
FAMILIES = "families.jsonl"
TARGETS = "targets.jsonl"
METHODS = (
    "methods.jsonl",
    "methods_epyc.jsonl",
    "methods_upos.jsonl",
    "methods_mlpruning.jsonl",
)
ONE_SHOT = "one_shot.jsonl"
FRONTIER = "frontier.jsonl"
LANGUAGES = "languages.jsonl"
ROUNDING = "rounding.jsonl"


def main() -> None:
    parts = []
    for files, table in ((MODELS, models_tables), (KERNELS, kernels_tables)):
        for rows in map(read, files):
            parts += [where(rows), *table(rows)]
    if (RESULTS / FAMILIES).exists():
        rows = read(FAMILIES)
        parts += [how_built(rows), families_table(rows), missed_goals(rows)]
    if (RESULTS / TARGETS).exists():
        rows = lines_of(TARGETS)
        parts += [how_asked(rows), targets_table(rows)]
    for rows in map(lines_of, METHODS):
        parts += [how_trained(rows), methods_table(rows)]
        if any("beside" in row for row in rows):
            parts.append(beside_table(rows))
    rows = lines_of(ONE_SHOT)
    parts += [how_fitted(rows), one_shot_table(rows)]
    parts += frontier_parts(lines_of(FRONTIER))
    rows = lines_of(LANGUAGES)
    parts += [how_ranked(rows), languages_table(rows)]
    rows = lines_of(ROUNDING)
    parts += [how_rounded(rows), rounding_table(rows)]
    write(DOCS / "results.md", parts)
    write(DOCS / "methods.md", [evidence_table(map(lines_of, METHODS))])


def write(page: Path, parts: list[str]) -> None:
    """Put `parts` in place of what stands between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"expected {BEGIN} and {END} in {page}")
    page.write_text(before + "\n\n".join([BEGIN, *parts, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
