"""Rankings of heads by language against sums in plain loops, and trials against a known curve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import classifier, labelled

from secateurs import METHODS, best_heads, find_sites, prune, score
from secateurs.errors import ArgumentError, DataError, MethodError
from secateurs.pruning.head_trials import rank_correlation

LANGUAGES = {"en": labelled(2, seed=1), "de": labelled(1, seed=2), "fi": labelled(1, seed=3)}


def ranked(batches, **options):
    return score(
        classifier(), batches, method="cross_lingual", budget="heads=0.5", progress=False, **options
    )


def by_hand(batches) -> np.ndarray:
    """[L, H]: sums of |d loss of one example / d gate| in a loop over examples, a gate being a
    scale of its head's columns in the output projection; divided by layer norms; from 0 to 1."""
    model = classifier().eval()
    sites = find_sites(model)
    total = np.zeros((3, 4))
    for batch in batches:
        for i in range(len(batch["labels"])):
            model.zero_grad()
            model(**{name: value[i : i + 1] for name, value in batch.items()}).loss.backward()
            for layer in range(3):
                weight = sites.linear(model, layer, "output").weight
                product = (weight * weight.grad).sum(0).view(4, 16).sum(1)
                total[layer] += product.abs().detach().numpy()
    total /= np.linalg.norm(total, axis=1, keepdims=True)
    return (total - total.min()) / (total.max() - total.min())


def matrix(scores) -> np.ndarray:
    return np.stack([scores[f"layers.{i}.heads"].numpy() for i in range(3)])


def test_one_language_is_ranked_by_the_gradients_of_its_examples():
    want = by_hand(LANGUAGES["en"])
    for batches in ({"en": LANGUAGES["en"]}, LANGUAGES["en"]):
        np.testing.assert_allclose(matrix(ranked(batches)), want, atol=1e-4)


def test_a_sum_counts_each_language_once_and_a_merger_each_example():
    summed, merged = ranked(LANGUAGES), ranked(LANGUAGES, combine="merge")
    want = sum(by_hand(batches) for batches in LANGUAGES.values())
    np.testing.assert_allclose(matrix(summed), want, atol=1e-4)
    together = [batch for batches in LANGUAGES.values() for batch in batches]
    np.testing.assert_allclose(matrix(merged), by_hand(together), atol=1e-4)
    assert not np.allclose(matrix(summed) / 3, matrix(merged), atol=1e-2)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ({}, "at least one batch"),
        ({"en": LANGUAGES["en"], "de": []}, "of each group, got none of 'de'"),
        ({"en": LANGUAGES["en"], "de": None}, "expected batches of de to be"),
        ({"en": LANGUAGES["en"], "de": [torch.ones(2)]}, "batches as dicts of tensors"),
        (
            {"en": LANGUAGES["en"], "de": [{"input_ids": torch.ones(2, 4).long()}]},
            "the same labels in every batch",
        ),
    ],
)
def test_bad_groups_are_refused(batches, words):
    with pytest.raises(DataError, match=words):
        ranked(batches)


def test_groups_are_for_methods_that_know_them():
    assert [name for name, row in METHODS.items() if row.pruner.grouped] == ["cross_lingual"]
    with pytest.raises(DataError, match="expected batches to be an iterable, got a dict"):
        prune(classifier(), LANGUAGES, method="gradient", budget="heads=0.5", progress=False)
    with pytest.raises(MethodError, match="one of sum, merge"):
        ranked(LANGUAGES, combine="best")


def rankings(**orders: list[int]):
    """Scores of 12 heads that go in the order given."""
    found = {}
    for name, order in orders.items():
        scores = torch.empty(12)
        scores[order] = torch.arange(12.0)
        found[name] = {f"layers.{i}.heads": part for i, part in enumerate(scores.split(4))}
    return found


UP, DOWN = list(range(12)), list(range(11, -1, -1))


def gone(plan) -> list[int]:
    keep = torch.cat([plan.masks[f"layers.{i}.heads"].keep for i in range(3)])
    return (~keep).nonzero().flatten().tolist()


def test_heads_go_one_by_one_and_the_best_plan_is_kept():
    worth = {1: 0.6, 2: 0.7, 3: 0.698, 4: 0.7, 5: 0.65, 6: 0.696, 7: 0.6, 8: 0.99}
    tried = []

    def trial(plan):
        tried.append(gone(plan))
        return worth[len(tried[-1])]

    found = best_heads(classifier(), rankings(en=UP), trial, most=10)
    assert tried == [list(range(n)) for n in range(1, 8)], "given up after 5 and 7"
    assert (found.ranking, found.heads, found.score) == ("en", 2, 0.7)
    assert gone(found.plan) == [0, 1]
    assert found.scores == {"en": [worth[n] for n in range(1, 8)]}
    found.plan.validate(find_sites(classifier()), find_sites(classifier()).fingerprint())


def test_the_best_of_several_rankings_is_found_and_each_is_tried_to_its_own_end():
    def trial(plan):
        lost = gone(plan)
        return 0.5 - 0.1 * len(lost) if 0 in lost else 0.5 + 0.01 * len(lost)

    found = best_heads(classifier(), rankings(en=UP, de=DOWN), trial, most=11)
    assert (found.ranking, found.heads) == ("de", 11)
    assert {name: len(scores) for name, scores in found.scores.items()} == {"en": 3, "de": 11}

    def falling(plan):
        return 0.9 - 0.1 * len(gone(plan)) if 0 in gone(plan) else 0.5

    found = best_heads(classifier(), rankings(de=DOWN, en=UP), falling, most=11)
    assert (found.ranking, found.heads) == ("en", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rankings": {}}, "expected a ranking"),
        ({"most": 12}, "between 1 and 11 heads"),
        ({"patience": 0}, "a patience of at least 1"),
        ({"rankings": {"en": {"layers.0.heads": torch.ones(4)}}}, "12 heads.*in the ranking 'en'"),
    ],
)
def test_trials_that_cannot_be_are_refused(changes, words):
    asked = {"rankings": rankings(en=UP), "most": 3, **changes}
    with pytest.raises((MethodError, ArgumentError), match=words):
        best_heads(classifier(), asked.pop("rankings"), lambda plan: 0.0, **asked)


def test_a_trial_without_a_score_is_refused():
    with pytest.raises(MethodError, match="finite scores, got nan"):
        best_heads(classifier(), rankings(en=UP), lambda plan: float("nan"), most=3)


def test_rank_correlation_by_hand():
    a = {"layers.0.heads": torch.tensor([1.0, 2.0, 2.0, 9.0])}
    b = {"layers.0.heads": torch.tensor([4.0, 3.0, 1.0, 0.0])}
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([4, 3, 2, 1.0])
    assert rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(a, a) == pytest.approx(1.0)
    with pytest.raises(MethodError, match="equal scores alone"):
        rank_correlation(a, {"layers.0.heads": torch.ones(4)})
    with pytest.raises(MethodError, match="of the same units"):
        rank_correlation(a, rankings(en=UP)["en"])
