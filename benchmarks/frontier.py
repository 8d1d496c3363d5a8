"""Pruned without labels or training: what is left of the metric, and whether a time is met.

    python benchmarks/frontier.py --data-dir DIR --tasks sst2,qnli,stsb --json frontier.jsonl
    python benchmarks/frontier.py --data-dir DIR --tasks upos:en_ewt --model DIR --freeze-embeddings
    python benchmarks/frontier.py --tasks embeddings --kept "two thirds" --variants quick long

One model is fine-tuned for each task, in a work folder that other benchmarks may share; the task
`embeddings` takes the model as it comes, and judges it by the cosine of its embeddings to those of
the dense model, on sentences of a novel that it has not seen. Rows, for each task, a half and a
quarter kept, and each seed of the calibration data:

    shares of NAME  half or three quarters of all heads and neurons go in the order of a method, and
                    the rest is re-fitted; nothing is timed, so that a busy machine will do
    shares, tuned   what kprune leaves so, with one scale fitted for each unit instead (after Kwon
                    et al. 2022, arXiv 2204.09656)
    gradient        heads and neurons of lowest gradient go, in equal shares; re-fitted
    mask tuning     what `compress` chooses at the time of that model, with scales instead
    quick, normal, long   `compress` at that time, by its efforts

A row holds the metric over the validation examples and the seconds of the search; of what is timed
also the time asked for, predicted, and measured in turns with the model as transformers runs it and
with the dense peers that are installed. Rows that the file holds are not run again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

# The process of a peer reads this file too, and begins with our path.
with suppress(ValueError):
    sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.dense import (
    EMBEDDINGS,
    Dense,
    Rows,
    add_arguments,
    calibration,
    embedding_model,
    fine_tuned,
    listed,
    prepare,
    rest_of_calibration,
    task_data,
    where,
)
from benchmarks.dense_peers import PEERS, dense_peers, times_beside
from torch import Tensor, nn

import secateurs as sc
from secateurs.architectures.sites import find_sites
from secateurs.cli.arguments import shape
from secateurs.data.batches import check_batches, evaluating
from secateurs.measurement.peers.apart import Apart
from secateurs.reconstruction.walk import Walk
from secateurs.search import Search
from secateurs.search.sizes import Size, heads_kept, neurons_kept

KEPT = {"two thirds": 2 / 3, "half": 0.5, "quarter": 0.25}
# The methods of the variants that are not timed.
SHARES = {
    "shares of gradient": "gradient",
    "shares of kprune": "kprune",
    "shares of obs": "obs",
    "shares, tuned": "kprune",
}
TIMED = ("gradient", "mask tuning", "quick", "normal", "long")
Batches = list[dict[str, Tensor]]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows = Rows(options.json, "task", "model", "kept", "variant", "seed", "precision")
    for name in options.tasks:
        dense = (
            embedding_model(options)
            if name == EMBEDDINGS
            else fine_tuned(task_data(name, options), options)
        )
        timed = set(options.variants) & set(TIMED)
        names = options.peers if timed else ()
        with dense_peers(dense, names, options.shape, options.linears) as peers:
            for seed in range(options.seeds):
                runs = Runs(dense, seed, peers, options)
                for kept in options.kept:
                    for variant in options.variants:
                        record = {"task": name, "kept": kept, "variant": variant, "seed": seed}
                        record |= {"precision": options.linears, **where(options)}
                        if record not in rows:
                            record |= runs.row(variant, KEPT[kept])
                            rows.add(record)
                            _print(record)
    return 0


class Runs:
    """All that is pruned with one seed of the calibration data."""

    def __init__(
        self, dense: Dense, seed: int, peers: Mapping[str, Apart], options: argparse.Namespace
    ) -> None:
        self._dense, self._seed, self._peers, self._options = dense, seed, peers, options
        self._batches = calibration(dense, options.examples, 32, seed)

    def row(self, variant: str, share: float) -> dict[str, Any]:
        """The figures of one variant that keeps `share`, or the time of a model that does."""
        start = time.perf_counter()
        figures = (self._of_share if variant in SHARES else self._timed)(variant, share, start)
        return {
            "metric": self._dense.metric,
            "dense": self._dense.metrics[self._dense.metric],
            "shape": list(self._options.shape),
            "examples": self._options.examples,
            "dtype": "float32",
            **figures,
        }

    def _of_share(self, variant: str, share: float, start: float) -> dict[str, Any]:
        model, method = self._dense.model, SHARES[variant]
        budget = sc.Budget(heads=1 - share, neurons=1 - share)
        plan = sc.prune(model, self._batches, method=method, budget=budget, progress=False)
        fitted = self._fit(variant)(model, plan, self._batches)
        seconds = time.perf_counter() - start
        return {"score": self._dense.score(sc.apply(fitted, plan)), "seconds": seconds}

    def _timed(self, variant: str, share: float, start: float) -> dict[str, Any]:
        model, options = self._dense.model, self._options
        layers = find_sites(model).layers
        sizes = [
            Size(
                _nearest(heads_kept(s), s.heads * share),
                _nearest(neurons_kept(s), s.neurons * share),
            )
            for s in layers
        ]
        table = self._search.table
        # Over the model as transformers runs it, in turns: a machine's speed wanders.
        speedup = table.stock / table.predict(sizes)
        if variant == "gradient":
            budget, predicted = sc.Budget(heads=1 - share, neurons=1 - share), None
            plan = sc.prune(model, self._batches, budget=budget, progress=False)
        else:
            effort = "quick" if variant == "mask tuning" else variant
            found = self._search.meet(sc.Budget(speedup=speedup), effort)
            plan, predicted = found.plan, found.predicted
        if variant in ("gradient", "mask tuning"):
            fitted = self._fit(variant)(model, plan, self._batches)
            tokens = options.shape[0] * options.shape[1]
            fast = sc.convert(fitted, plan, tokens=tokens, precision=options.linears)
        else:
            fast = found.model
        seconds = time.perf_counter() - start
        times = times_beside(fast, self._dense, self._peers, options.shape, options.min_time)
        return {
            "score": self._dense.score(fast),
            "asked_ms": times["stock_ms"] / speedup,
            "predicted_ms": predicted,
            **times,
            "seconds": seconds,
        }

    @cached_property
    def _search(self) -> Search:
        return Search(
            self._dense.model,
            self._batches,
            shapes=[self._options.shape],
            precision=self._options.linears,
            distill_on=rest_of_calibration(self._dense, self._options.examples, 32, self._seed),
            seed=self._seed,
            force=True,
            progress=False,
        )

    def _fit(self, variant: str) -> Callable[[nn.Module, sc.SparsityPlan, Batches], nn.Module]:
        return (
            tuned
            if variant in ("shares, tuned", "mask tuning")
            else partial(sc.refit, progress=False)
        )


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))


@torch.no_grad()
def tuned(dense: nn.Module, plan: sc.SparsityPlan, batches: list[dict[str, Tensor]]) -> nn.Module:
    """A copy of `dense` in which each unit that stays has a scale, by least squares towards the
    dense model's residual stream, layer by layer."""
    sites, pruned = find_sites(dense), sc.apply(dense, plan).eval()
    walk = Walk(sites, dense, pruned)
    with evaluating(dense), torch.no_grad():
        runs = [walk.start(batch) for batch in check_batches(batches)]
        for index in range(len(sites.layers)):
            keep = sites.keep(plan, index)
            for group in walk.groups(index):
                units = (
                    keep.heads if group.sublayer is sites.architecture.attention else keep.neurons
                )
                if not group.is_last or not bool(units.any()):
                    continue
                (view,) = walk.views(group)
                columns = keep.sides(group.linears[0].role)[1]
                sums = walk.equations(group, columns)
                for run in runs:
                    walk.add(sums, group, columns, run)
                weight = view.weight[:, columns].double()
                width, count = len(columns) // len(units), int(units.sum())
                products = sums.gram * (weight.T @ weight)
                system = products.view(count, width, count, width).sum((1, 3))
                wanted = (sums.product * weight.T).view(count, width, -1).sum((1, 2))
                damping = 0.01 * system.diagonal().mean() * torch.eye(count).double()
                scales = 1 + torch.linalg.solve(system + damping, wanted)
                view.weight[:, columns] = (weight * scales.repeat_interleave(width)).float()
            for run in runs:
                walk.advance(index, run)
    return pruned


def _print(record: Mapping[str, Any]) -> None:
    lost = 100 * (record["dense"] - record["score"])
    times = ""
    if "ms" in record:
        times = (
            f"asked {record['asked_ms']:.1f} ms, got {record['ms']:.1f} "
            f"(+- {record['spread_ms']:.1f})  "
        )
    if record.get("peer"):
        times += f"{record['peer']} {record['peer_ms']:.1f} ms  "
    print(
        f"  {record['kept']:<12}{record['variant']:<18}seed {record['seed']}  "
        f"{record['score']:.4f} "
        f"({lost:.1f} points lost)  {times}{record['seconds']:.0f} s",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, precision="bf16", json="frontier.jsonl")
    every = (*SHARES, *TIMED)
    parser.add_argument(
        "--variants", nargs="+", choices=every, metavar="NAME", default=every, help="default: all"
    )
    parser.add_argument(
        "--kept", type=listed, default=["half", "quarter"], help="default: half,quarter"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the calibration data")
    parser.add_argument("--examples", type=int, default=512, help="that the search reads")
    parser.add_argument("--shape", type=shape, default=(8, 128), metavar="BxT")
    parser.add_argument("--linears", choices=("int8",), help="the precision of `compress`")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="default: all")
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds of timing a row")
    return parser


if __name__ == "__main__":
    sys.exit(main())
