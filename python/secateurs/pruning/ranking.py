"""Ranking: exactly so many of the lowest scores, however many there are, and are equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateurs.errors import MethodError

# From here on scores are counted in histograms: joining them would need as much memory again.
HISTOGRAM_FROM = 50_000_000
_CHUNK = 1 << 22
_BINS = 1 << 16


def lowest(
    scores: Sequence[Tensor], count: int, *, histogram_from: int = HISTOGRAM_FROM
) -> list[Tensor]:
    """Bool tensors shaped as `scores`, True at exactly `count` of the lowest over all of them.

    Among equal scores the ones that come first are taken. With more than `histogram_from` scores
    the threshold is found by two passes of histograms over the bits of float32, exactly.

    Raises MethodError for a count out of range or a score that is NaN.
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= count <= total:
        raise MethodError(f"expected to rank between 0 and {total} scores, got {count}")
    if any(bool(score.isnan().any()) for score in scores):
        raise MethodError("expected scores that can be ranked, but some are NaN")
    if count == 0:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    if total > histogram_from:
        scores = [score.float() for score in scores]
        threshold = _threshold_by_histogram(scores, count)
    else:
        threshold = torch.cat([score.flatten() for score in scores]).kthvalue(count).values
    below = [(score < threshold).contiguous() for score in scores]
    missing = count - sum(int(part.sum()) for part in below)
    for part, score in zip(below, scores, strict=True):
        ties = (score == threshold).flatten()
        part.view(-1).logical_or_(ties & (ties.cumsum(0) <= missing))
        missing -= min(missing, int(ties.sum()))
    return below


def _threshold_by_histogram(scores: Sequence[Tensor], count: int) -> Tensor:
    """The `count`-th lowest float32: first its upper 16 bits, then its lower ones."""
    upper, before = _bin_of(scores, count, lambda key: key >> 16)
    lower, _ = _bin_of(
        scores, count - before, lambda key: (key & 0xFFFF)[(key >> 16) == upper] - _BINS // 2
    )
    key = (upper << 16) | (lower + _BINS // 2)
    bits = torch.tensor(key, dtype=torch.int32, device=scores[0].device)
    return _flip(bits).view(torch.float32)


def _bin_of(scores: Sequence[Tensor], count: int, digit) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """The 16-bit digit, counted from -32768, that holds the `count`-th lowest, and how many lie in
    lower ones."""
    histogram = torch.zeros(_BINS, dtype=torch.int64, device=scores[0].device)
    for score in scores:
        for part in score.flatten().split(_CHUNK):
            key = _flip(part.view(torch.int32))
            histogram += torch.bincount((digit(key) + _BINS // 2).long(), minlength=_BINS)
    reached = histogram.cumsum(0)
    index = int((reached >= count).nonzero()[0])
    return index - _BINS // 2, int(reached[index] - histogram[index])


def _flip(bits: Tensor) -> Tensor:
    """Integers in the order of the floats with these bits, and back: it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
