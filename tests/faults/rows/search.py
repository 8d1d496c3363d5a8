"""Faults of `search`."""

from __future__ import annotations

from fault import faults_in

FAULTS = (
    *faults_in(
        "python/secateurs/search/knapsack.py",
        ("np.ceil((group - start) / width - 1e-9)", "np.floor((group - start) / width)",
         "search/test_knapsack.py -k just_above"),
        ("    if room < 0:\n", "    if room < -1:\n",
         "search/test_knapsack.py -k below_the_fastest"),
        ("better = candidate < after", "better = candidate > after", "search/test_knapsack.py"),
    ),
    *faults_in(
        "python/secateurs/search/choices.py",
        ("ordered = ordered.clamp_min(0).cumsum(0)", "ordered = ordered.clamp_min(0)",
         "search/test_choices.py -k least_error"),
        ("ordered.flip(0)", "ordered", "search/test_choices.py -k least_error"),
    ),
    *faults_in(
        "python/secateurs/search/search.py",
        ("_limit(budget, table.stock) / ratio", "_limit(budget, table.stock)",
         "search/test_compress.py -k corrected"),
        ("if times.ms <= allowed and", "if", "search/test_compress.py -k nearest"),
        ("and not self._force:", "and False:", "search/test_compress.py -k noise"),
    ),
    *faults_in(
        "python/secateurs/search/sensitivity.py",
        ("(1 - _SHRUNK) * (output - mean)", "(output - mean)",
         "search/test_compress.py -k not_sensitive"),
        ("(logs[1] - logs[0])", "(logs[0] - logs[1])", "search/test_compress.py -k divergence"),
    ),
    *faults_in(
        "python/secateurs/search/local_search.py",
        ("if (found := distance(tried)) < least:", "if True:\n            found = distance(tried)",
         "search/test_compress.py -k more_effort"),
    ),
)  # fmt: skip
