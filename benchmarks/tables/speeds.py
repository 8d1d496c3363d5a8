"""Tables of speeds: whole models, single kernels, families."""

from __future__ import annotations

from statistics import median

from benchmarks.tables.rows import Row, agree, markdown, precision_of, where

# Other kernels by a word of their names, and what their shapes say.
OTHERS = {
    "attention": "B x H x T x D",
    "vector": "M x K x N",
    "library": "M x K x N",
    "norm": "M x D",
}
# The speedups of a row of families: what they are of, and what is wanted.
GOALS = {"dense": ("nothing removed", 1.0), "half": ("half removed", 1.6)}


def models_tables(rows: list[Row]) -> list[str]:
    """One line per model and shape: speedups over eager transformers, ours and the best peer's; of
    rows of several precisions, `precisions_table`."""
    if len({precision_of(row) for row in rows}) > 1:
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
    return [markdown(heads, lines)]


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
            peer = f"{best['ms']:.2f} ms, {best['variant']} {precision_of(best)}"
            peer += f" (cosine {best['cosine']:.4f})"
        for precision in dict.fromkeys(map(precision_of, found)):
            mine = {r["variant"]: r for r in found if precision_of(r) == precision}
            cells = [f"{model} {shape[0]}x{shape[1]}", peer, precision]
            for name in ours:
                times = "" if best is None else f", {best['ms'] / mine[name]['ms']:.2f}x"
                cells.append(f"{mine[name]['ms']:.2f} ms{times}")
            cells.append(f"{mine[ours[0]]['cosine']:.5f}")
            lines.append(cells)
    heads = ["model, batch x tokens", "fastest dense peer", "ours in"]
    heads += [f"{-_kept(name):.0%} kept" for name in ours]
    return markdown([*heads, f"cosine at {-_kept(ours[0]):.0%}"], lines)


def kernels_tables(rows: list[Row]) -> list[str]:
    """Of each kernel, speedups over the fastest dense peer."""
    vectors = int8_vectors_table(rows)
    others = () if vectors else (others_table(rows, word) for word in OTHERS)
    tables = (linears_table(rows), int8_linears_table(rows), vectors, *others)
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
    return markdown(heads, lines)


def int8_linears_table(rows: list[Row]) -> str:
    """One line per shape of int8_linear and dtype of its input: milliseconds, how many times as
    fast as with all blocks, and that times the density; nothing if there is none."""
    rows = [r for r in rows if r["op"] == "int8_linear"]
    if not rows:
        return ""
    densities = sorted({r["density"] for r in rows}, reverse=True)
    lines = []
    for dtype, shape in dict.fromkeys((r["dtype"], tuple(r["shape"])) for r in rows):
        of_kind = [r for r in rows if (r["dtype"], tuple(r["shape"])) == (dtype, shape)]
        found = {r["density"]: r for r in of_kind}
        dense = found[densities[0]]
        cells = ["x".join(map(str, shape)), dtype, f"{dense['speedup']:.2f}x {dense['baseline']}"]
        for density in densities:
            ms = found[density]["ms"]
            times = dense["ms"] / ms
            less = f", {times:.2f}x, {times * density:.2f}" if density < densities[0] else ""
            cells.append(f"{ms:.2f} ms{less}")
        lines.append(cells)
    heads = ["int8, M x K x N", "of inputs in", "all blocks over the fastest other"]
    return markdown([*heads, *(f"{d:.0%} of blocks kept" for d in densities)], lines)


def int8_vectors_table(rows: list[Row]) -> str:
    """One line per pattern in codes and dtype of its input, one column per shape: milliseconds, and
    how many times as fast as the fastest other product, ours of codes for all inputs among them;
    nothing if there is none."""
    rows = [r for r in rows if r["op"].startswith("int8 vector")]
    if not rows:
        return ""
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in rows))
    lines = []
    for op, dtype in dict.fromkeys((r["op"], r["dtype"]) for r in rows):
        found = {tuple(r["shape"]): r for r in rows if (r["op"], r["dtype"]) == (op, dtype)}
        told = (
            f"{found[shape]['ms']:.2f} ms, {found[shape]['speedup']:.2f}x "
            f"{found[shape]['baseline']}"
            for shape in shapes
        )
        lines.append([op, dtype, *told])
    heads = ["M x K x N", "inputs in", *("x".join(map(str, shape)) for shape in shapes)]
    return markdown(heads, lines)


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
    return markdown([OTHERS[word], *("x".join(map(str, shape)) for shape in shapes)], lines)


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
        cells = lines.setdefault((row["model"], str(tokens), precision_of(row)), {})
        cells |= {(part, batch): f"{row[f'speedup_{part}']:.2f}x" for part in GOALS}
    heads = ["family", "tokens", "in", *(f"{GOALS[part][0]}, batch {b}" for part, b in columns)]
    found = sorted(lines.items())
    return markdown(heads, [[*name, *(c.get(key, "-") for key in columns)] for name, c in found])


def missed_goals(rows: list[Row]) -> str:
    """Name the rows that are slower than is wanted, in one sentence."""
    missed = [
        f"{row['model']} {precision_of(row)}, batch {row['shape'][0]}, {words} ({speed:.3f}x)"
        for part, (words, goal) in GOALS.items()
        for row in sorted(rows, key=lambda row: (row["model"], row["shape"]))
        if (speed := row[f"speedup_{part}"]) < goal
    ]
    wanted = " and ".join(f"{goal}x with {words}" for words, goal in GOALS.values())
    return f"Wanted are {wanted}; below that: {'; '.join(missed) or 'none'}."


def how_asked(rows: list[Row]) -> str:
    """What all searches for a speed have in common."""
    agree(rows, "model", "device", "isa", "threads", "torch")
    first = rows[0]
    asked = sorted({row["speedup"] for row in rows})
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return (
        f"Speed-ups asked for, {', '.join(f'{speedup:g}' for speedup in asked)}, of "
        f"{first['model']}, {first['device']} ({first['isa']}), {first['threads']} threads, torch "
        f"{first['torch']}, commit {commits}. Each model that was found is measured a second time, "
        "in turns with the model as transformers runs it; off is that time over the one asked for. "
        "Predictions are off from what the search measured:"
    )


def targets_table(rows: list[Row]) -> str:
    """One line per precision and shape: how many speeds were met, how far off they are where
    something was removed, and how far the table of times was."""
    groups: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], tuple(row["shape"])), []).append(row)
    lines = []
    for (dtype, shape), of_kind in groups.items():
        found = [row for row in of_kind if "refused" not in row]
        pruned = [row for row in found if not row["whole"]]
        off = sorted(row["off"] for row in pruned)
        predicted = [abs(row["predicted_off"]) for row in pruned]
        late = sum(row["off"] > row["spread"] for row in found)
        cells = ["x".join(map(str, shape)), dtype, str(len(of_kind)), str(len(found))]
        cells += [str(len(found) - len(pruned)), str(sum(abs(value) <= 0.05 for value in off))]
        cells += [f"{off[0]:+.1%}", f"{median(off):+.1%}", f"{off[-1]:+.1%}"] if off else ["-"] * 3
        cells += [str(late), f"{median(row['spread'] for row in found):.1%}"]
        cells += [f"{median(predicted):.1%}", f"{max(predicted):.1%}"] if off else ["-"] * 2
        lines.append(cells)
    heads = ["batch x tokens", "in", "asked", "reachable", "lose nothing", "others within 5 %"]
    heads += ["fastest", "median", "slowest", "late by more than the spread", "spread"]
    return markdown([*heads, "prediction off, median", "most"], lines)


def _ours(rows: list[Row]) -> list[str]:
    return sorted({r["variant"] for r in rows if r["variant"].startswith("converted")}, key=_kept)


def _by_shape(rows: list[Row]) -> dict[tuple[str, tuple[int, ...]], list[Row]]:
    groups: dict[tuple[str, tuple[int, ...]], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], tuple(row["shape"])), []).append(row)
    return groups


def _kept(variant: str) -> float:
    """`converted 0.5` as -0.5, so that sorting puts the densest first."""
    return -float(variant.split()[-1])
