"""The choice of one option for each layer: against every combination."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from secateurs.search.knapsack import BINS, cheapest


def brute_force(times, costs, limit):
    """The least cost within the limit, over every combination."""
    sums = [
        (sum(c[i] for c, i in zip(costs, chosen, strict=True)))
        for chosen in product(*(range(len(group)) for group in times))
        if sum(t[i] for t, i in zip(times, chosen, strict=True)) <= limit
    ]
    return min(sums, default=None)


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_cheapest_of_all_but_for_a_bin_for_each_group(seed):
    random = np.random.default_rng(seed)
    times = [random.normal(size=random.integers(1, 6)) for _ in range(4)]
    costs = [random.random(len(group)) for group in times]
    least = sum(group.min() for group in times)
    limit = least + random.random() * (sum(group.max() for group in times) - least)
    chosen = cheapest(times, costs, limit)
    taken = sum(group[i] for group, i in zip(times, chosen, strict=True))
    cost = sum(group[i] for group, i in zip(costs, chosen, strict=True))
    assert taken <= limit + 1e-9
    # Rounded up to bins, what fits into a slightly smaller limit surely is found.
    reach = brute_force(times, costs, limit - 4 * (limit - least) / BINS)
    assert brute_force(times, costs, limit + 1e-9) - 1e-9 <= cost
    assert reach is None or cost <= reach + 1e-9


def test_the_fastest_options_just_fit():
    times = [np.array([3.0, 1.0]), np.array([2.0, 5.0])]
    costs = [np.array([0.0, 9.0]), np.array([9.0, 0.0])]
    assert cheapest(times, costs, 3.0) == [1, 0]


def test_a_sum_just_above_the_limit_is_not_chosen():
    """By less than a bin for each group, which rounding down would not see."""
    times = [np.array([0.0, 0.5 + 0.6 / BINS])] * 2
    costs = [np.array([1.0, 0.0])] * 2
    assert sorted(cheapest(times, costs, 1.0)) == [0, 1]


def test_a_limit_below_the_fastest_options_is_told():
    assert cheapest([np.array([3.0, 1.0])], [np.zeros(2)], 0.99) is None


def test_a_limit_above_everything_costs_nothing():
    times = [np.array([0.0, -2.0]), np.array([-1.0, 0.0])]
    costs = [np.array([0.0, 1.0]), np.array([1.0, 0.0])]
    assert cheapest(times, costs, 10.0) == [0, 1]
