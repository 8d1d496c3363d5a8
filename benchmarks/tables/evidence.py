"""The table of evidence: what each method claims, and whether our rows bear it out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.tables.rows import Row, markdown, named


@dataclass(frozen=True)
class Variant:
    """A method with its options, and whether it recovers from re-fitted weights."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    from_refit: bool = False

    def __str__(self) -> str:
        return named(self.method, self.options, self.from_refit)

    def made(self, row: Row) -> bool:
        """Whether a row is of this."""
        found = row["method"], row["options"], row.get("from_refit", False)
        return found == (self.method, dict(self.options), self.from_refit)


@dataclass(frozen=True)
class Claim:
    """That a method keeps at least as much of the metric as each of its rivals.

    Args:
        score: of a row: "pruned" (recovered) or "unrecovered".
    """

    text: str
    method: Variant
    rivals: tuple[Variant, ...]
    budgets: tuple[str, ...]
    score: str = "pruned"


def plain(*methods: str) -> tuple[Variant, ...]:
    return tuple(map(Variant, methods))


EVENLY = {"modules_in": "parameters"}
PATTERNS = tuple(
    f"patterns={share}{kind}" for share in (0.5, 0.75) for kind in ("", ",pattern=library")
)
CLAIMS = (
    Claim(
        "DSP without recovery, against other ways to choose heads",
        Variant("dsp"),
        plain("gradient", "voita", "random"),
        ("heads=0.75", "heads=0.9"),
        "unrecovered",
    ),
    Claim("the same, recovered", Variant("dsp"), plain("gradient", "voita", "random"),
          ("heads=0.75", "heads=0.9")),
    Claim(
        "SMP against balanced random heads and an untrained scorer",
        Variant("smp"),
        (Variant("random", {"allocator": "per_layer"}), *plain("random")),
        ("heads=0.5",),
    ),
    Claim(
        "SNIP with spectral normalisation, against without, and magnitude",
        Variant("snip_identity"),
        (Variant("snip_identity", {"spectral": 0}), *plain("magnitude")),
        ("modules=0.5",),
    ),
    Claim(
        "the same at half of the parameters",
        Variant("snip_identity", EVENLY),
        (Variant("snip_identity", {**EVENLY, "spectral": 0}),),
        ("modules=0.5",),
    ),
    Claim(
        "SNIP by taylor, at half of the parameters, against by norms",
        Variant("snip_identity", {**EVENLY, "estimator": "taylor"}),
        (Variant("snip_identity", EVENLY),),
        ("modules=0.5",),
    ),
    Claim(
        "layer-wise ADMM, re-fitted, then trained, against magnitude",
        Variant("layerwise_admm", from_refit=True),
        (*plain("magnitude"), Variant("magnitude", from_refit=True)),
        PATTERNS,
    ),
    Claim(
        "ADMM patterns along a training, against magnitude at once",
        Variant("admm_pattern"),
        plain("magnitude"),
        PATTERNS,
    ),
    *(
        Claim(
            "a re-fit before recovery, against recovery alone",
            Variant(method, from_refit=True),
            plain(method),
            budgets,
        )
        for method, budgets in (
            ("gradient", ("heads=0.75", "heads=0.9", "heads=0.5,neurons=0.5")),
            ("magnitude", ("weights=0.9", *PATTERNS)),
        )
    ),
    *(
        Claim(f"{name} against gradual magnitude, and magnitude at once", Variant(method),
              plain("gradual_magnitude", "magnitude"), ("weights=0.8", "weights=0.9"))
        for name, method in (("SEVEN", "seven"), ("PLATON", "platon"), ("DCIL", "dcil"))
    ),
    Claim(
        "MLPruning's heads and neurons against those of the gradient",
        Variant("mlpruning"),
        plain("gradient", "magnitude"),
        ("heads=0.5,neurons=0.5",),
    ),
    Claim(
        "sensitivity allocation against equal shares",
        Variant("sensi_bert"),
        (Variant("sensi_bert", {"allocator": "per_layer"}),),
        ("heads=0.5,neurons=0.5",),
    ),
)  # fmt: skip


def evidence_table(files: Iterable[list[Row]]) -> str:
    """One line per claim, task and budget: medians over the seeds that a method shares with its
    rivals, which are compared within one file alone."""
    files = list(files)
    lines = [line for claim in CLAIMS for rows in files for line in _lines(claim, rows)]
    names = ["claim", "task, removed", "not pruned", "seen", "rivals", "seeds", "holds"]
    return markdown(names, lines)


def _lines(claim: Claim, rows: list[Row]) -> Iterator[list[str]]:
    for task in dict.fromkeys(row["task"] for row in rows):
        for budget in claim.budgets:
            here = [r for r in rows if (r["task"], r["budget"]) == (task, budget)]
            here = [r for r in here if claim.score in r and not r.get("imitates")]
            mine = _by_seed(here, claim.method)
            rivals = {str(rival): _by_seed(here, rival) for rival in claim.rivals}
            rivals = {name: found for name, found in rivals.items() if mine.keys() & found.keys()}
            if not rivals:
                continue
            seeds = [s for s in mine if all(s in found for found in rivals.values())]
            scores = {
                name: median(found[seed][claim.score] for seed in seeds)
                for name, found in rivals.items()
            }
            seen = median(mine[seed][claim.score] for seed in seeds)
            yield [
                claim.text,
                f"{task}, {budget}",
                f"{median(mine[seed]['dense'] for seed in seeds):.3f}",
                f"{seen:.3f}",
                ", ".join(f"{name} {score:.3f}" for name, score in scores.items()),
                str(len(seeds)),
                "yes" if seen >= max(scores.values()) else "no",
            ]


def _by_seed(rows: list[Row], wanted: Variant) -> dict[int, Row]:
    return {row["seed"]: row for row in rows if wanted.made(row)}
