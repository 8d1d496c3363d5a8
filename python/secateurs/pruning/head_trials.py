"""best_heads: how many heads, and by which ranking, are best removed, tried one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import door, first_line, fit
from secateurs.errors import MethodError
from secateurs.plan import HeadMask, SparsityPlan
from secateurs.pruning.ranking import lowest


@dataclass(frozen=True)
class HeadTrials:
    """What was tried, and what was best.

    Attributes:
        plan: that removes the `heads` lowest heads of the ranking `ranking`.
        score: of it.
        scores: of every trial, by ranking, from one head gone on.
    """

    plan: SparsityPlan
    ranking: str
    heads: int
    score: float
    scores: dict[str, list[float]]


@door
def best_heads(
    model: nn.Module,
    rankings: Mapping[str, Mapping[str, Tensor]],
    trial: Callable[[SparsityPlan], float],
    *,
    most: int = 12,
    margin: float = 0.005,
    patience: int = 2,
) -> HeadTrials:
    """Remove one head, then two, and so on, and keep what scores best (Ma et al. 2021, arXiv
    2108.08375).

    Args:
        model: whose heads are ranked; it is not changed.
        rankings: scores of heads by site, as `score` gives them for a method and a language, under
            a name each; the heads with the lowest scores go first. With one for each language the
            best of them is found.
        trial: what a plan is worth, more being better: as published, the score on the development
            data of the source languages after fine-tuning the pretrained model with these heads
            gone. Not on the data that the result is told of: the best of many is flattered there.
        most: heads that may go.
        margin, patience: a ranking is given up when so many of its trials have scored below its
            best by more than the margin; half a point of a score between 0 and 1.

    Rankings are not made again between trials. Among equal scores the first counts: the fewest
    heads.

    Raises MethodError for no ranking, scores of other heads than the model's, and values out of
    range.
    """
    sites = find_sites(model)
    heads = {site.name: site.shape for site in sites.of_kind("heads")}
    total = sum(shape[0] for shape in heads.values())
    if not rankings or patience < 1 or margin < 0 or not 1 <= most < total:
        raise MethodError(
            f"expected a ranking, a patience of at least 1, a margin of at least 0 and between 1 "
            f"and {total - 1} heads to try, got {len(rankings)}, {patience}, {margin} and {most}"
        )
    scores: dict[str, list[float]] = {}
    for name, ranking in rankings.items():
        fit(f"the ranking {name!r}", ranking, Mapping[str, Tensor], MethodError)
        if {site: getattr(score, "shape", None) for site, score in ranking.items()} != heads:
            raise MethodError(
                f"expected scores of the {total} heads of this {type(model).__name__} in the "
                f"ranking {name!r}, got some of {', '.join(ranking) or 'nothing'}"
            )
        found = scores[name] = []
        for count in range(1, most + 1):
            found.append(_worth(trial, without_lowest(sites, ranking, count)))
            best = max(found)
            since = found[found.index(best) :]
            if sum(score < best - margin for score in since) >= patience:
                break
    name = max(scores, key=lambda ranking: max(scores[ranking]))
    best = max(scores[name])
    count = scores[name].index(best) + 1
    plan = without_lowest(sites, rankings[name], count)
    return HeadTrials(plan, name, count, best, scores)


def rank_correlation(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """How alike two rankings of the same units are, from -1 to 1 (Spearman); equal scores share
    their mean rank. Raises MethodError for rankings of other units, or of one score alone."""
    if [(n, s.shape) for n, s in one.items()] != [(n, s.shape) for n, s in other.items()]:
        raise MethodError("expected two rankings of the same units, got some of others")
    ranks = torch.stack([_ranks(one), _ranks(other)])
    found = float(torch.corrcoef(ranks)[0, 1])
    if math.isnan(found):
        raise MethodError("expected rankings that tell units apart, got equal scores alone")
    return found


def _ranks(scores: Mapping[str, Tensor]) -> Tensor:
    values = torch.cat([score.flatten().double() for score in scores.values()])
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0) - (counts - 1) / 2
    return ranks[place]


def without_lowest(sites: Sites, ranking: Mapping[str, Tensor], count: int) -> SparsityPlan:
    """The plan that removes the `count` lowest heads."""
    gone = lowest([*ranking.values()], count)
    masks = {name: HeadMask(~part.cpu()) for name, part in zip(ranking, gone, strict=True)}
    return SparsityPlan(masks, sites.fingerprint())


def _worth(trial: Callable[[SparsityPlan], float], plan: SparsityPlan) -> float:
    try:
        score = float(trial(plan))
    except Exception as error:
        raise MethodError(f"expected a trial that scores plans, got {first_line(error)}") from error
    if not math.isfinite(score):
        raise MethodError(f"expected trials with finite scores, got {score}")
    return score
