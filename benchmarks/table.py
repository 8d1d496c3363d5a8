"""Writes the tables of docs/results.md from the JSON lines in benchmarks/results/.

python benchmarks/table.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: python benchmarks/table.py -->", "<!-- /results -->"

MODELS = (
    "models_precisions.jsonl",
    "models.jsonl",
    "models_xeon_bf16.jsonl",
    "models_xeon_fp32.jsonl",
)
KERNELS = (
    "kernels.jsonl",
    "kernels_xeon_bf16_linears.jsonl",
    "kernels_xeon_bf16.jsonl",
    "kernels_xeon_fp32.jsonl",
)
# Other kernels by a word of their names, and what their shapes say.
OTHERS = {
    "attention": "B x H x T x D",
    "vector": "M x K x N",
    "library": "M x K x N",
    "norm": "M x D",
}
FAMILIES = "families.jsonl"
# The speedups of a row of families: what they are of, and what is wanted.
GOALS = {"dense": ("nothing removed", 1.0), "half": ("half removed", 1.6)}
METHODS = "methods.jsonl"
ONE_SHOT = "one_shot.jsonl"
FRONTIER = "frontier.jsonl"
ROUNDING = "rounding.jsonl"

LINEARS = "layers' linears"

Row = Mapping[str, Any]


def main() -> None:
    page = ROOT / "docs" / "results.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"expected {BEGIN} and {END} in {page}")
    parts = []
    for files, table in ((MODELS, models_tables), (KERNELS, kernels_tables)):
        for rows in map(read, files):
            parts += [where(rows), *table(rows)]
    if (RESULTS / FAMILIES).exists():
        rows = read(FAMILIES)
        parts += [how_built(rows), families_table(rows), missed_goals(rows)]
    rows = lines_of(METHODS)
    parts += [how_trained(rows), methods_table(rows)]
    rows = lines_of(ONE_SHOT)
    parts += [how_fitted(rows), one_shot_table(rows)]
    parts += frontier_parts(lines_of(FRONTIER))
    rows = lines_of(ROUNDING)
    parts += [how_rounded(rows), rounding_table(rows)]
    body = "\n\n".join([BEGIN, *parts, END])
    page.write_text(before + body + after, encoding="utf-8")


def lines_of(name: str) -> list[Row]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


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
    agree(rows, "device", "threads", "torch", "commit")
    isa = next(row["isa"] for row in rows if row["isa"])
    dtypes = ", ".join(dict.fromkeys(map(_precision, rows)))
    return (
        f"{what}, {dtypes}, {first['device']} ({isa}), {first['threads']} threads, "
        f"torch {first['torch']}, commit {first['commit']}:"
    )


def models_tables(rows: list[Row]) -> list[str]:
    """One line per model and shape: speedups over eager transformers, ours and the best peer's; of
    rows of several precisions, `precisions_table`."""
    if len({_precision(row) for row in rows}) > 1:
        return [precisions_table(rows)]
    ours = _ours(rows)
    lines = []
    for (model, shape), found in _by_shape(rows).items():
        mine = {r["variant"]: r["speedup"] for r in found}
        dense = {name: speedup for name, speedup in mine.items() if name not in ours}
        best = max(dense, key=dense.__getitem__) if dense else None
        peer = f"{dense[best]:.2f}x {best}" if best else "-"
        cells = [f"{model} {shape[0]}x{shape[1]}", peer]
        cells += [f"{mine[name]:.2f}x" for name in ours]
        lines.append(cells)
    heads = ["model, batch x tokens", "fastest dense peer"]
    heads += [f"ours, {-_kept(name):.0%} kept" for name in ours]
    return [_markdown(heads, lines)]


def precisions_table(rows: list[Row]) -> str:
    """One line per model, shape and precision of ours: milliseconds, and how many times as fast as
    the fastest dense peer of any precision, which is named with its cosine to the dense model."""
    ours = _ours(rows)
    lines = []
    for (model, shape), found in _by_shape(rows).items():
        peers = [row for row in found if row["variant"] not in ours]
        best = min(peers, key=lambda row: row["ms"]) if peers else None
        peer = "-"
        if best is not None:
            peer = f"{best['ms']:.2f} ms, {best['variant']} {_precision(best)}"
            peer += f" (cosine {best['cosine']:.4f})"
        for precision in dict.fromkeys(map(_precision, found)):
            mine = {r["variant"]: r for r in found if _precision(r) == precision}
            cells = [f"{model} {shape[0]}x{shape[1]}", peer, precision]
            for name in ours:
                times = "" if best is None else f", {best['ms'] / mine[name]['ms']:.2f}x"
                cells.append(f"{mine[name]['ms']:.2f} ms{times}")
            cells.append(f"{mine[ours[0]]['cosine']:.5f}")
            lines.append(cells)
    heads = ["model, batch x tokens", "fastest dense peer", "ours in"]
    heads += [f"{-_kept(name):.0%} kept" for name in ours]
    return _markdown([*heads, f"cosine at {-_kept(ours[0]):.0%}"], lines)


def _ours(rows: list[Row]) -> list[str]:
    return sorted({r["variant"] for r in rows if r["variant"].startswith("converted")}, key=_kept)


def _by_shape(rows: list[Row]) -> dict[tuple[str, tuple[int, ...]], list[Row]]:
    groups: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], tuple(row["shape"])), []).append(row)
    return groups


def _precision(row: Row) -> str:
    """Of the linears; rows from before there was a choice have that of their dtype."""
    return str(row.get("precision", row["dtype"]))


def kernels_tables(rows: list[Row]) -> list[str]:
    """Of each kernel, speedups over the fastest dense peer."""
    tables = (linears_table(rows), *(others_table(rows, word) for word in OTHERS))
    return [table for table in tables if table]


def linears_table(rows: list[Row]) -> str:
    """One line per shape of block_sparse_linear, one column per density; nothing if there is
    none."""
    rows = [r for r in rows if r["op"] == "block_sparse_linear"]
    if not rows:
        return ""
    densities = sorted({r["density"] for r in rows}, reverse=True)
    lines = []
    for shape in dict.fromkeys(tuple(r["shape"]) for r in rows):
        found = {r["density"]: r for r in rows if tuple(r["shape"]) == shape}
        cells = ["x".join(map(str, shape)), found[densities[0]]["baseline"]]
        cells += [f"{found[d]['speedup']:.2f}x" if d in found else "-" for d in densities]
        lines.append(cells)
    heads = ["M x K x N", "fastest dense peer", *(f"{d:.0%} of blocks kept" for d in densities)]
    return _markdown(heads, lines)


def others_table(rows: list[Row], word: str) -> str:
    """One line per kernel with `word` in its name, one column per shape; nothing if there is
    none."""
    rows = [r for r in rows if word in r["op"]]
    if not rows:
        return ""
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in rows))
    lines = []
    for op in dict.fromkeys(r["op"] for r in rows):
        found = {tuple(r["shape"]): f"{r['speedup']:.2f}x" for r in rows if r["op"] == op}
        lines.append([op, *(found.get(shape, "-") for shape in shapes)])
    return _markdown([OTHERS[word], *("x".join(map(str, shape)) for shape in shapes)], lines)


def how_built(rows: list[Row]) -> str:
    """What all models of families have in common."""
    agree(rows, "transformers")
    version = rows[0]["transformers"]
    how = "of a few layers with random weights, see `benchmarks/families.py`"
    return f"Families, {how}; transformers {version}. {where(rows)}"


def families_table(rows: list[Row]) -> str:
    """One line per family and precision, sorted; columns of speedups for each size of a batch."""
    columns = [(part, batch) for part in GOALS for batch in sorted({r["shape"][0] for r in rows})]
    lines: dict[tuple[str, str, str], dict[tuple[str, int], str]] = {}
    for row in rows:
        batch, tokens = row["shape"]
        cells = lines.setdefault((row["model"], str(tokens), _precision(row)), {})
        cells |= {(part, batch): f"{row[f'speedup_{part}']:.2f}x" for part in GOALS}
    heads = ["family", "tokens", "in", *(f"{GOALS[part][0]}, batch {b}" for part, b in columns)]
    found = sorted(lines.items())
    return _markdown(heads, [[*name, *(c.get(key, "-") for key in columns)] for name, c in found])


def missed_goals(rows: list[Row]) -> str:
    """Name the rows that are slower than is wanted, in one sentence."""
    missed = [
        f"{row['model']} {_precision(row)}, batch {row['shape'][0]}, {words} ({speed:.3f}x)"
        for part, (words, goal) in GOALS.items()
        for row in sorted(rows, key=lambda row: (row["model"], row["shape"]))
        if (speed := row[f"speedup_{part}"]) < goal
    ]
    wanted = " and ".join(f"{goal}x with {words}" for words, goal in GOALS.values())
    return f"Wanted are {wanted}; below that: {'; '.join(missed) or 'none'}."


def how_trained(rows: list[Row]) -> str:
    """What all runs of the methods have in common, and the model that they began with."""
    agree(rows, "epochs", "lr", "precision")
    first, latency = rows[0], rows[0]["latency"]
    tasks = {row["task"]: row for row in rows}
    dense = ", ".join(
        f"{name} {row['metric']} {row['dense']:.3f} ({row['examples'][0]} training examples)"
        for name, row in tasks.items()
    )
    fine, prune, recover = first["epochs"]
    return (
        f"Methods, {latency['model']}, {latency['device']}, {latency['threads']} threads, torch "
        f"{latency['torch']}; {fine:g} epochs of fine-tuning, then {prune:g} while pruning and "
        f"{recover:g} of recovery, or both of recovery for methods that do not train, learning "
        f"rate {first['lr']:g}, {first['precision']}. Not pruned: {dense}."
    )


def methods_table(rows: list[Row]) -> str:
    """One line per budget and method: what each task's model scores, the mean over the seeds that
    all tasks have; of the mean over tasks also the standard deviation over seeds; and what the
    model costs."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    named = [(row["budget"], _method(row)) for row in rows]
    lines = []
    for budget, method in sorted(dict.fromkeys(named), key=lambda name: name[0]):
        mine = [r for r, name in zip(rows, named, strict=True) if name == (budget, method)]
        scores = {(r["task"], r["seed"]): r["pruned"] for r in mine}
        seeds = sorted({seed for _, seed in scores})
        whole = [s for s in seeds if all((task, s) in scores for task in tasks)]
        of_task = [[scores[t, s] for s in whole or seeds if (t, s) in scores] for t in tasks]
        of_seed = [mean([scores[task, s] for task in tasks]) for s in whole]
        cells = [budget, method, *(f"{mean(found):.3f}" if found else "-" for found in of_task)]
        cells += [f"{mean(of_seed):.3f}" if whole else "-"]
        cells[-1] += f" ± {stdev(of_seed):.3f}" if len(whole) > 1 else ""
        cells += [str(len(whole)), f"{mean([r['kept'][LINEARS] for r in mine]):.2f}"]
        cells += [f"{median(r['latency']['speedup'] for r in mine):.2f}x"]
        lines.append(cells)
    return _markdown(["removed", "method", *tasks, "mean", "seeds", "kept", "speed"], lines)


def how_fitted(rows: list[Row]) -> str:
    """What all rows of masks chosen at once have in common."""
    agree(rows, "task", "metric", "dense", "examples", "epochs", "lr", "threads", "device")
    first = rows[0]
    trained, read, judged = first["examples"]
    return (
        f"Masks chosen at once, {first['model']}, {first['device']}, {first['threads']} threads, "
        f"torch {first['torch']}; {first['epochs']:g} epochs of fine-tuning on {trained} examples "
        f"at learning rate {first['lr']:g}, then no training and no labels: masks and re-fit read "
        f"{read} examples. {first['task']} {first['metric']} on {judged} examples, not pruned "
        f"{first['dense']:.3f}:"
    )


def one_shot_table(rows: list[Row]) -> str:
    """One line per budget and mask: the metric on the weights as they were, and re-fitted."""
    lines = [
        [row["budget"], row["mask"], f"{row['as_it_was']:.3f}", f"{row['fitted']:.3f}"]
        for row in rows
    ]
    return _markdown(["removed", "masks of", "weights as they were", "re-fitted"], lines)


def frontier_parts(rows: list[Row]) -> list[str]:
    """For each model and precision, what its rows of a time and of shares have in common, and a
    table."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row.get("precision") or row["dtype"]), []).append(row)
    parts = []
    for found in groups.values():
        parts += [how_timed(found), frontier_table(found)]
    return parts


def how_timed(rows: list[Row]) -> str:
    """What all rows of a pruned model have in common."""
    agree(rows, "dtype", "shape", "examples", "threads", "device", "isa", "torch", "commit")
    first = rows[0]
    batch, tokens = first["shape"]
    return (
        f"Pruned without labels or training, {first['model']}, "
        f"{first.get('precision') or first['dtype']}, {first['device']} ({first['isa']}), "
        f"{first['threads']} threads, torch {first['torch']}, commit {first['commit']}; "
        f"{first['examples']} examples of calibration. Asked for is the time at {batch}x{tokens} "
        "of the model that keeps a half, or a quarter, of the heads and neurons of each layer; "
        "medians over seeds of the calibration data:"
    )


def frontier_table(rows: list[Row]) -> str:
    """One line per task, size and variant; what was not timed has no times."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["kept"], row["variant"]), []).append(row)
    lines = []
    for (task, kept, variant), found in groups.items():
        score, dense = (median(row[key] for row in found) for key in ("score", "dense"))
        cells = [f"{task}, {kept}", variant, str(len(found)), f"{dense:.3f}", f"{score:.3f}"]
        cells.append(f"{100 * (dense - score):.1f}")
        if any("ms" not in row for row in found):
            cells += ["-"] * 4
        else:
            asked, ms, stock = (
                median(row[key] for row in found) for key in ("asked_ms", "ms", "stock_ms")
            )
            peers = [row["peer_ms"] for row in found if row.get("peer_ms") is not None]
            cells += [f"{asked:.1f}", f"{ms:.1f}", f"{stock / ms:.2f}x"]
            cells.append(f"{median(peers) / ms:.2f}x {found[0]['peer']}" if peers else "-")
        lines.append([*cells, f"{median(row['seconds'] for row in found):.0f}"])
    heads = ["task, kept", "by", "seeds", "dense", "pruned", "points lost", "ms asked", "ms"]
    return _markdown([*heads, "speed", "over dense peer", "s"], lines)


def how_rounded(rows: list[Row]) -> str:
    """What all rows of models in other precisions have in common."""
    agree(rows, "model", "device", "isa", "torch", "commit")
    first = rows[0]
    examples = max(row["examples"] for row in rows)
    return (
        f"In other precisions, nothing pruned and nothing trained further, {first['model']}, "
        f"{first['device']} ({first['isa']}), torch {first['torch']}, commit {first['commit']}; "
        f"the data are {examples} training examples without labels:"
    )


def rounding_table(rows: list[Row]) -> str:
    """One line per task and precision."""
    lines = [
        [
            f"{row['task']} {row['metric']}, {row['judged']} examples",
            row["way"],
            f"{row['dense']:.4f}",
            f"{row['score']:.4f}",
            f"{100 * (row['dense'] - row['score']):.2f}",
            f"{row['cosine']:.5f}",
            f"{row['cosine_least']:.5f}",
        ]
        for row in rows
    ]
    heads = ["task", "in", "fp32", "score", "points lost", "cosine, mean", "least"]
    return _markdown(heads, lines)


def _method(row: Row) -> str:
    return " ".join([row["method"], *(f"{name}={value}" for name, value in row["options"].items())])


def _kept(variant: str) -> float:
    """`converted 0.5` as -0.5, so that sorting puts the densest first."""
    return -float(variant.split()[-1])


def _markdown(heads: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, rule, *lines])


if __name__ == "__main__":
    main()
