"""Writes the tables of docs/results.md and docs/methods.md from the JSON lines in
benchmarks/results/, each between the marks that name it.

python benchmarks/table.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.tables.evidence import evidence_table
from benchmarks.tables.quality import (
    beside_table,
    frontier_tables,
    how_fitted,
    how_ranked,
    how_rounded,
    how_trained,
    languages_table,
    methods_table,
    one_shot_table,
    rounding_table,
)
from benchmarks.tables.rows import Row, lines_of, read, where
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
PAGES = ("results.md", "methods.md")
MARKS = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)

MODELS = ("models_precisions", "models", "models_xeon_bf16", "models_xeon_fp32")
KERNELS = (
    "kernels",
    "kernels_int8",
    "kernels_int8_vectors",
    "kernels_xeon_bf16_linears",
    "kernels_xeon_bf16",
    "kernels_xeon_fp32",
)
METHODS = ("methods", "methods_epyc", "methods_upos", "methods_images", "methods_mlpruning")


def main() -> None:
    found = tables()
    left = {*found}
    for name in PAGES:
        page = DOCS / name
        text = page.read_text(encoding="utf-8")
        used = {name for _, name, _ in MARKS.findall(text)}
        if not used <= left:
            raise SystemExit(
                f"{page} names {', '.join(sorted(used - left))}: no such table is left"
            )
        left -= used
        page.write_text(MARKS.sub(lambda mark: _filled(mark, found), text), encoding="utf-8")
    if left:
        raise SystemExit(f"no page names {', '.join(sorted(left))}")


def tables() -> dict[str, list[str]]:
    """What stands between the marks of each name: most are names of files of rows."""
    found: dict[str, list[str]] = {}
    for names, table in ((MODELS, models_tables), (KERNELS, kernels_tables)):
        for name in names:
            rows = read(name)
            found[name] = [where(rows), *table(rows)]
    rows = read("families")
    found["families"] = [how_built(rows), families_table(rows), missed_goals(rows)]
    rows = lines_of("targets")
    found["targets"] = [how_asked(rows), targets_table(rows)]
    for name in METHODS:
        found[name] = _of_methods(lines_of(name))
    rows = lines_of("one_shot")
    found["one_shot"] = [how_fitted(rows), one_shot_table(rows)]
    for commit, parts in frontier_tables(lines_of("frontier")).items():
        found[f"frontier_{commit}"] = parts
    rows = lines_of("languages")
    found["languages"] = [how_ranked(rows), languages_table(rows)]
    rows = lines_of("rounding")
    found["rounding"] = [how_rounded(rows), rounding_table(rows)]
    found["evidence"] = [evidence_table(map(lines_of, METHODS))]
    return found


def _of_methods(rows: list[Row]) -> list[str]:
    parts = [how_trained(rows), methods_table(rows)]
    return [*parts, beside_table(rows)] if any("beside" in row for row in rows) else parts


def _filled(mark: re.Match[str], found: dict[str, list[str]]) -> str:
    begin, name, end = mark.groups()
    return begin + "".join(f"\n{part}\n" for part in found[name]) + "\n" + end


if __name__ == "__main__":
    main()
