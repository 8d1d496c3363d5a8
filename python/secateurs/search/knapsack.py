"""The choice of one option for each layer: the least cost within a limit of time.

Source: the dynamic programme of Frantar and Alistarh 2022, "SPDY" (arXiv 2201.13096), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
BINS = 2000


def cheapest(
    times: Sequence[Numbers], costs: Sequence[Numbers], limit: float, bins: int = BINS
) -> list[int] | None:
    """Choose one option of each group, so that costs add up to the least and times to `limit` at
    most; None where even the fastest options take longer.

    Times are cut into bins and rounded up, so that the limit holds exactly and the choice may be
    off the best by one bin for each group.

    Args:
        times: `[options]` of each group; any sign.
        costs: `[options]` of each group, at least 0.
        limit: of the sum of times.
    """
    least = [float(group.min()) for group in times]
    room = limit - sum(least)
    if room < 0:
        return None
    width = max(room / bins, 1e-12)
    best = np.zeros(bins + 1)
    choices = []
    for group, start, cost in zip(times, least, costs, strict=True):
        steps = np.minimum(np.ceil((group - start) / width - 1e-9), bins + 1).astype(int)
        after, choice = np.full(bins + 1, np.inf), np.zeros(bins + 1, dtype=int)
        for option in np.argsort(cost, kind="stable"):
            step = steps[option]
            if step > bins:
                continue
            candidate = np.full(bins + 1, np.inf)
            candidate[step:] = best[: bins + 1 - step] + cost[option]
            better = candidate < after
            after[better], choice[better] = candidate[better], option
        best = after
        choices.append((steps, choice))
    time, chosen = bins, []
    for steps, choice in reversed(choices):
        chosen.append(int(choice[time]))
        time -= steps[chosen[-1]]
    return chosen[::-1]
