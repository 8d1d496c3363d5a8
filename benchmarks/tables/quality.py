"""Tables of quality: methods, masks, searches for a time, precisions."""

from __future__ import annotations

from statistics import mean, median, stdev

from benchmarks.tables.rows import Row, agree, markdown, named

LINEARS = "layers' linears"
BEFORE = {"unrecovered": "without recovery", "refitted": "re-fitted"}


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
    all tasks have; of the mean over tasks also the standard deviation over seeds; what the plan
    scored before it recovered, where rows have that; and what the model costs."""
    early = [name for name in BEFORE if any(name in row for row in rows)]
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
        cells = [budget, method]
        for name in early:
            found = [row[name] for row in mine if name in row]
            cells.append(f"{mean(found):.3f}" if found else "-")
        cells += [f"{mean(found):.3f}" if found else "-" for found in of_task]
        cells += [f"{mean(of_seed):.3f}" if whole else "-"]
        cells[-1] += f" ± {stdev(of_seed):.3f}" if len(whole) > 1 else ""
        cells += [str(len(whole)), f"{mean([r['kept'][LINEARS] for r in mine]):.2f}"]
        cells += [f"{median(r['latency']['speedup'] for r in mine):.2f}x"]
        lines.append(cells)
    heads = ["removed", "method", *(BEFORE[name] for name in early), *tasks]
    return markdown([*heads, "mean", "seeds", "kept", "speed"], lines)


def beside_table(rows: list[Row]) -> str:
    """One line per model that was timed beside dense peers, by task, method and precision."""
    lines = []
    for row in rows:
        for times in row.get("beside", ()):
            shape = "x".join(map(str, times["shape"]))
            lines.append(
                [
                    f"{row['task']}, {_method(row)}, {row['budget']}",
                    f"{times['precision'] or 'float32'}, {shape}",
                    f"{row['dense']:.3f}",
                    f"{times['score']:.3f}",
                    f"{times['ms']:.1f} ± {times['spread_ms']:.1f}",
                    f"{times['stock_ms'] / times['ms']:.2f}x",
                    f"{times['peer']}, {times['peer_ms'] / times['ms']:.2f}x",
                ]
            )
    names = [
        "model",
        "precision, shape",
        "dense",
        "score",
        "ms",
        "over eager",
        "over its best peer",
    ]
    return markdown(names, lines)


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
    return markdown(["removed", "masks of", "weights as they were", "re-fitted"], lines)


def frontier_tables(rows: list[Row]) -> dict[str, list[str]]:
    """By commit, which tells one set of runs from another: what its rows of a time and of shares
    have in common, and a table."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["commit"], []).append(row)
    return {commit: [how_timed(found), frontier_table(found)] for commit, found in groups.items()}


def how_timed(rows: list[Row]) -> str:
    """What all rows of a pruned model have in common."""
    agree(rows, "model", "dtype", "shape", "examples", "threads", "device", "isa", "torch")
    first = rows[0]
    batch, tokens = first["shape"]
    return (
        f"Pruned without labels or training, {first['model']}, "
        f"{first.get('precision') or first['dtype']}, {first['device']} ({first['isa']}), "
        f"{first['threads']} threads, torch {first['torch']}, commit {first['commit']}; "
        f"{first['examples']} examples of calibration. Asked for is the time at {batch}x{tokens} "
        "of the model that keeps that share of the heads and neurons of each layer; "
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
    return markdown([*heads, "speed", "over dense peer", "s"], lines)


def how_ranked(rows: list[Row]) -> str:
    """What all rows of heads that one language ranks have in common."""
    agree(rows, "task", "model", "metric", "device", "torch", "commit")
    first = rows[0]
    sentences = min(row["sentences"] for row in rows)
    return (
        f"Heads removed, as {first['task']} ranks them, and nothing trained further: "
        f"{first['metric']} on {sentences} sentences of each language, {first['model']}, "
        f"{first['device']}, torch {first['torch']}, commit {first['commit']}; random heads are "
        "medians over seeds, the last line Spearman's correlation of the language's own ranking:"
    )


def languages_table(rows: list[Row]) -> str:
    """One line per order and count of heads, one column per language."""
    languages = list(dict.fromkeys(row["language"] for row in rows))
    lines = []
    for order, heads in dict.fromkeys((row["order"], row["heads"]) for row in rows):
        mine = [row for row in rows if (row["order"], row["heads"]) == (order, heads)]
        scores = (
            [row["score"] for row in mine if row["language"] == language] for language in languages
        )
        lines.append([order, "-" if heads is None else str(heads), *map(_median, scores)])
    return markdown(["which", "heads gone", *languages], lines)


def _median(scores: list[float]) -> str:
    return f"{median(scores):.3f}" if scores else "-"


def how_rounded(rows: list[Row]) -> str:
    """What all rows of models in other precisions have in common."""
    agree(rows, "device", "isa", "torch")
    first = rows[0]
    examples = max(row["examples"] for row in rows)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return (
        "In other precisions, nothing pruned and nothing trained further, "
        f"{first['device']} ({first['isa']}), torch {first['torch']}, commit {commits}; "
        f"the data are {examples} training examples without labels:"
    )


def rounding_table(rows: list[Row]) -> str:
    """One line per task and precision."""
    lines = [
        [
            f"{row['model']}, {row['task']} {row['metric']}, {row['judged']} examples",
            row["way"],
            f"{row['dense']:.4f}",
            f"{row['score']:.4f}",
            f"{100 * (row['dense'] - row['score']):.2f}",
            f"{row['cosine']:.5f}",
            f"{row['cosine_least']:.5f}",
        ]
        for row in rows
    ]
    heads = ["model, task", "in", "fp32", "score", "points lost", "cosine, mean", "least"]
    return markdown(heads, lines)


def _method(row: Row) -> str:
    taught = " with a teacher" if row.get("imitates") else ""
    return named(row["method"], row["options"], row.get("from_refit", False)) + taught
