"""Heads that one language ranks, removed in a model that is judged in others (Ma et al. 2021, arXiv
2108.08375).

    python benchmarks/languages.py --data-dir DIR --tasks upos:en_ewt --model DIR
        --freeze-embeddings --languages-dir PUD --languages en,de,fr,ru,ar --json languages.jsonl

One multilingual encoder is fine-tuned on a treebank of the source language, and `cross_lingual`
ranks its heads by training examples there. Each language has a file of sentences, LANGUAGE.jsonl.gz
in the folder of languages: its first half may decide, the second judges. Rows, for each language:

    none, lowest, highest, random   the score with so many heads gone, and nothing trained further
    best                            the same of as many lowest heads as do best on the first half of
                                    the source's file
    correlation                     Spearman's, of the source's ranking and that of the language by
                                    its first half

Departure: the paper fine-tunes the pretrained model again without the heads, for each number of
them. Rows that the file holds are not made again; the best count is sought each time.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.dense import (
    Dense,
    Rows,
    add_arguments,
    fine_tuned,
    listed,
    prepare,
    task_data,
    where,
)
from torch import Tensor

import secateurs as sc
from secateurs.data.token_classification import word_task
from secateurs.pruning.head_trials import best_heads, rank_correlation, without_lowest
from secateurs.training.task_recipe import TaskData, evaluate

COUNTS = (12, 36)
MOST = 12  # heads that may go at best
Ranking = Mapping[str, Tensor]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prepare(options)
    rows = Rows(options.json, "task", "language", "order", "heads", "seed")
    (task,) = options.tasks
    study = Study(fine_tuned(task_data(task, options), options), options)
    for named, score in study.rows():
        record = {"task": task, "metric": study.dense.metric, **named, **where(options)}
        if record not in rows:
            rows.add(record | {"score": score()})
            print(" ".join(f"{value}" for value in named.values()), flush=True)
    return 0


class Study:
    """A fine-tuned model, the ranking by its source language, and the sentences of each."""

    def __init__(self, dense: Dense, options: argparse.Namespace) -> None:
        self.dense, self._options = dense, options
        self._languages = {name: self._halves(name) for name in options.languages}

    def rows(self) -> Iterator[tuple[dict[str, Any], Callable[[], float]]]:
        """What tells each row apart, and what finds its score."""
        sites = sc.find_sites(self.dense.model)
        plans = [("none", 0, 0, sc.SparsityPlan())]
        for count in COUNTS:
            highest = {name: -score for name, score in self._source.items()}
            orders = [("lowest", 0, self._source), ("highest", 0, highest)]
            orders += [("random", seed, self._random(seed)) for seed in range(self._options.seeds)]
            for order, seed, ranking in orders:
                plans.append((order, count, seed, without_lowest(sites, ranking, count)))
        plans.append(self._best())
        for order, heads, seed, plan in plans:
            for language, data in self._languages.items():
                named = {"language": language, "order": order, "heads": heads, "seed": seed}
                score = partial(self._score, plan, data)
                yield {**named, "sentences": len(data.validation)}, score
        for language, data in self._languages.items():
            named = {"language": language, "order": "correlation", "heads": None, "seed": 0}
            yield {**named, "sentences": len(data.train)}, partial(self._correlation, data)

    def _score(self, plan: sc.SparsityPlan, data: TaskData) -> float:
        return evaluate(sc.apply(self.dense.model, plan), data)[self.dense.metric]

    def _correlation(self, data: TaskData) -> float:
        return rank_correlation(self._source, self._ranking(data.train))

    @cached_property
    def _source(self) -> Ranking:
        assert isinstance(self.dense.data, TaskData)
        return self._ranking(self.dense.data.train[: self._options.examples])

    def _ranking(self, examples: list[dict[str, Any]]) -> Ranking:
        assert isinstance(self.dense.data, TaskData)
        batches = self.dense.data.batches(examples, self._options.batch_size)
        budget = sc.Budget(heads=0.5)
        return sc.score(
            self.dense.model, batches, method="cross_lingual", budget=budget, progress=False
        )

    def _random(self, seed: int) -> Ranking:
        chance = torch.Generator().manual_seed(seed)
        return {n: torch.rand(s.shape, generator=chance) for n, s in self._source.items()}

    def _best(self) -> tuple[str, int, int, sc.SparsityPlan]:
        """As many of the lowest heads as do best on the first half of the source's sentences."""
        source = self._languages[self._options.languages[0]]
        judged = TaskData(source.task, source.processor, source.train, source.train)
        trial = partial(self._score, data=judged)
        found = best_heads(self.dense.model, {"source": self._source}, trial, most=MOST)
        return "best", found.heads, 0, found.plan

    def _halves(self, language: str) -> TaskData:
        """The first half of the sentences of a language as training examples, the others judge."""
        assert isinstance(self.dense.data, TaskData)
        folder = Path(self._options.work) / "languages" / language
        folder.mkdir(parents=True, exist_ok=True)
        file = Path(self._options.languages_dir) / f"{language}.jsonl.gz"
        with gzip.open(file, "rt", encoding="utf-8") as text:
            lines = text.readlines()
        middle = len(lines) // 2
        for split, half in (("train", lines[:middle]), ("validation", lines[middle:])):
            (folder / f"{split}.jsonl").write_text("".join(half), encoding="utf-8")
        task, length = word_task(language), self._options.max_length
        return TaskData.read(task, self.dense.data.processor, folder.parent, length)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, tasks=["upos:en_ewt"], json="languages.jsonl")
    parser.add_argument("--languages-dir", required=True, help="of files of sentences")
    parser.add_argument(
        "--languages", type=listed, default=["en", "de", "fr", "ru", "ar"], help="the source first"
    )
    parser.add_argument("--examples", type=int, default=500, help="that rank in the source")
    parser.add_argument("--seeds", type=int, default=3, help="of random heads")
    return parser


if __name__ == "__main__":
    sys.exit(main())
