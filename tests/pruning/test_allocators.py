"""Every allocator against a loop that takes one unit at a time, and what all of them keep to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from support.known_plans import batches, digest, known_plans
from support.tiny_models import tiny_model
from support.training import classifier, trained
from torch import Tensor

from secateurs import METHODS, Budget, HeadMask, SparsityPlan, find_sites, prune
from secateurs.errors import ArgumentError, BudgetError, CheckpointError, MethodError
from secateurs.pruning import ALLOCATORS, Allocator, Session, make_pruner
from secateurs.pruning.allocation import GlobalRanking, PerLayer, allocator_options
from secateurs.pruning.allocation.units import removed

KNOWN = Path(__file__).parents[1] / "fixtures" / "known_plans.json"
BUDGETS = {
    "heads": (0.1, 0.4, 0.5, 0.75),
    "neurons": (0.01, 0.33, 0.9),
    "modules": (0.17, 0.5, 0.84),
    "blocks": (0.05, 0.5, 0.77),
}
Unit = tuple[str, int]


@pytest.fixture(params=ALLOCATORS)
def allocator(request) -> type[Allocator]:
    return ALLOCATORS[request.param]


def sites_of(layers: int = 3):
    return find_sites(tiny_model("bert", num_hidden_layers=layers))


def random_scores(kind: str, values: int, seed: int = 0) -> dict[str, Tensor]:
    """Scores of every site of a kind; few `values` make many of them equal."""
    random = torch.Generator().manual_seed(seed)
    site_kind = {"modules": "module", "blocks": "linear", "weights": "linear"}.get(kind, kind)
    scores = {}
    for site in sites_of():
        if site.kind == site_kind and not site.name.endswith(".layer"):
            shape = [size // 16 for size in site.shape] if kind == "blocks" else site.shape
            scores[site.name] = torch.randint(-3, values, shape, generator=random).double()
    return scores


def layer_of(site: str) -> str:
    return site.rpartition(".")[0]


def global_turns(scores: Mapping[str, Tensor]) -> list[Unit]:
    """Units in the order in which they go, whatever their layer."""
    units = [(float(v), i, j) for i, s in enumerate(scores.values()) for j, v in enumerate(flat(s))]
    names = list(scores)
    return [(names[site], place) for _, site, place in sorted(units)]


def layer_turns(scores: Mapping[str, Tensor]) -> list[Unit]:
    """Units by the share of its layer at which each goes, then by score, then by layer."""
    keyed = []
    for number, layer in enumerate(dict.fromkeys(map(layer_of, scores))):
        mine = global_turns({n: s for n, s in scores.items() if layer_of(n) == layer})
        for rank, (name, place) in enumerate(mine):
            share = Fraction(2 * rank + 1, 2 * len(mine))
            keyed.append((share, float(flat(scores[name])[place]), number, rank, (name, place)))
    return [unit for *_, unit in sorted(keyed)]


def flat(score: Tensor) -> list[float]:
    return score.flatten().tolist()


TURNS: dict[type, Callable[[Mapping[str, Tensor]], list[Unit]]] = {
    GlobalRanking: global_turns,
    PerLayer: layer_turns,
}
assert TURNS.keys() == set(ALLOCATORS.values())


def brute_force(
    turns: list[Unit], scores: Mapping[str, Tensor], count: int, floor: int
) -> dict[str, set[int]]:
    """Take `count` units one by one in their turns, but none of a site that is at its floor."""
    gone: dict[str, set[int]] = {name: set() for name in scores}
    for name, place in turns:
        if sum(map(len, gone.values())) == count:
            break
        if scores[name].numel() - len(gone[name]) > floor:
            gone[name].add(place)
    return gone


def gone_of(plan: SparsityPlan) -> dict[str, set[int]]:
    return {
        name: {i for i, kept in enumerate(mask.keep.flatten().tolist()) if not kept}
        for name, mask in plan.masks.items()
    }


@pytest.mark.parametrize("values", [1, 5, 10**6])
@pytest.mark.parametrize("kind", BUDGETS)
def test_units_go_as_in_a_loop_over_single_units(allocator, kind, values):
    scores = random_scores(kind, values)
    turns, total = TURNS[allocator](scores), sum(s.numel() for s in scores.values())
    for fraction in BUDGETS[kind]:
        plan = allocator().allocate(scores, sites_of(), Budget(**{kind: fraction}, block=16))
        assert gone_of(plan) == brute_force(turns, scores, removed(fraction, total), 0)


@pytest.mark.parametrize("floor", [1, 3])
def test_a_floor_is_kept_and_the_others_make_up_for_it(allocator, floor):
    for seed in range(5):
        scores = random_scores("heads", 9, seed)
        scores["layers.1.heads"] -= 100  # the whole layer would go first
        for count in range(1, 12 - 3 * floor + 1):
            plan = allocator(min_heads=floor).allocate(scores, sites_of(), Budget(heads=count / 12))
            want = brute_force(TURNS[allocator](scores), scores, count, floor)
            assert gone_of(plan) == want
            assert sum(map(len, want.values())) == count


def test_layers_lose_equal_shares_to_half_a_unit():
    """Whatever the scores say of one layer against another."""
    scores = random_scores("neurons", 10**6)
    scores["layers.1.neurons"] -= 10**7
    for fraction in (0.005, 0.1, 0.35, 0.98):
        plan = PerLayer().allocate(scores, sites_of(), Budget(neurons=fraction))
        for mask in plan.masks.values():
            assert abs(int((~mask.keep).sum()) - fraction * 96) <= 1


@pytest.mark.parametrize("floor", [0, 1, 2])
def test_uneven_layers_go_as_in_a_loop_too(allocator, floor):
    """A small layer is at its floor before its share of the whole has gone."""
    random = torch.Generator().manual_seed(3)
    sizes = {"layers.0.heads": 9, "layers.1.heads": 2, "layers.2.heads": 5}
    scores = {n: torch.randint(0, 8, (size,), generator=random) / 2 for n, size in sizes.items()}
    turns = TURNS[allocator](scores)
    for count in range(16 - 3 * floor + 1):
        gone = allocator().choose(scores, count, floor)
        places = {n: set(mask.nonzero().flatten().tolist()) for n, mask in gone.items()}
        assert places == brute_force(turns, scores, count, floor)


@pytest.mark.parametrize("kind", [*BUDGETS, "parameters", "macs"])
def test_a_bigger_budget_removes_a_superset(allocator, kind):
    kinds = ("heads", "neurons") if kind in Budget.TOTALS else (kind,)
    scores = {k: v for one in kinds for k, v in random_scores(one, 7).items()}
    smaller: dict[str, set[int]] = {name: set() for name in scores}
    for step in range(1, 20):
        budget = Budget(**{kind: step / 20}, block=16)
        larger = gone_of(allocator(min_heads=0).allocate(scores, sites_of(), budget))
        assert all(smaller[name] <= larger[name] for name in scores)
        smaller = larger


def test_a_total_takes_the_fewest_units_above_the_floors(allocator):
    """Against a scan over all numbers of units, from none."""
    sites = sites_of()
    scores = random_scores("heads", 50) | random_scores("neurons", 50)
    for kind, fraction in itertools.product(Budget.TOTALS, (0.1, 0.5, 0.8)):
        budget = Budget(**{kind: fraction}, seq_len=16)
        plan = allocator(min_heads=1, min_neurons=8).allocate(scores, sites, budget)
        assert sites.density(plan, 16)[kind] <= 1 - fraction
        heads, neurons = (
            sum(len(units) for name, units in gone_of(plan).items() if name.endswith(part))
            for part in ("heads", "neurons")
        )
        turns = sorted(
            [((j + 0.5) / 9, "heads") for j in range(9)]
            + [((j + 0.5) / 264, "neurons") for j in range(264)]
        )
        first = [kind for _, kind in turns[: heads + neurons]]
        assert first.count("heads") == heads
        last_kind = turns[heads + neurons - 1][1]
        fewer = {"heads": heads, "neurons": neurons}
        fewer[last_kind] -= 1
        masks = {}
        for part, floor in (("heads", 1), ("neurons", 8)):
            mine = {n: s for n, s in scores.items() if n.endswith(part)}
            gone = brute_force(TURNS[allocator](mine), mine, fewer[part], floor)
            for name, units in gone.items():
                keep = torch.tensor([i not in units for i in range(mine[name].numel())])
                masks[name] = type(plan.masks[name])(keep)
        assert sites.density(SparsityPlan(masks), 16)[kind] > 1 - fraction


def test_scores_and_model_are_left_as_they_were(allocator):
    scores = random_scores("heads", 5)
    copies = {name: score.clone() for name, score in scores.items()}
    allocator(min_heads=1).allocate(scores, sites_of(), Budget(heads=0.5))
    assert all(torch.equal(scores[name], copies[name]) for name in scores)


def test_the_defaults_make_the_plans_they_always_made():
    known = json.loads(KNOWN.read_text(encoding="utf-8"))
    assert {name: digest(plan) for name, plan in known_plans()} == known


def test_every_method_takes_every_allocator_or_says_that_it_decides_by_itself():
    for name, row in METHODS.items():
        for word in ALLOCATORS:
            if row.pruner.chooses:
                with pytest.raises(MethodError, match="decides by itself"):
                    make_pruner(name, allocator=word)
            else:
                assert type(make_pruner(name, allocator=word).allocator) is ALLOCATORS[word]
        assert not {*row.options} & {o for a in ALLOCATORS.values() for o in allocator_options(a)}
        assert not {*row.options} & {"allocator", "price", "method", "budget", "seed", "steps"}


def test_the_user_chooses_by_word_by_option_or_by_object():
    model, data = tiny_model("bert"), batches()

    def heads(**choice) -> list[int]:
        plan = prune(model, data, budget="heads=0.5", method="magnitude", progress=False, **choice)
        return [int(mask.keep.sum()) for mask in plan.masks.values()]

    with torch.no_grad():
        sites = find_sites(model)
        for role in ("query", "key", "value", "output"):
            sites.linear(model, 1, role).weight.mul_(1e-3)
    assert heads()[1] == heads(allocator="global")[1] == 0
    assert heads(min_heads=1)[1] == heads(allocator=GlobalRanking(min_heads=1))[1] == 1
    assert heads(allocator="per_layer") == [2, 2, 2]
    plan = prune(model, method="magnitude", budget="heads=0.5", allocator="global", min_heads=1)
    assert plan.notes["options"] == {"min_heads": 1}
    assert plan.notes["allocator"] == "GlobalRanking(min_heads=1, min_neurons=0)"


def test_smp_takes_shares_that_are_not_whole_from_an_allocator_that_was_chosen():
    model, data = tiny_model("bert"), batches()
    with pytest.raises(BudgetError, match="a multiple of 1/4"):
        prune(model, data, method="smp", budget="heads=0.4", progress=False)
    for word in ALLOCATORS:
        plan = prune(model, data, method="smp", budget="heads=0.4", allocator=word, progress=False)
        assert sum(int((~mask.keep).sum()) for mask in plan.masks.values()) == 5


def test_a_method_that_trains_takes_an_allocator_and_goes_on_with_no_other():
    def session(**choice) -> Session:
        return Session(classifier(), "seven", budget="blocks=0.5,block=16", steps=10, **choice)

    plans, state = {}, {}
    for word in ALLOCATORS:
        with session(allocator=word) as one:
            trained(one, 10)
            state = one.state_dict()
        plans[word] = one.plan
        assert one.plan.notes["allocator"].startswith(ALLOCATORS[word].__name__)
    layers: dict[str, int] = {}
    for name, mask in plans["per_layer"].masks.items():
        layers[layer_of(name)] = layers.get(layer_of(name), 0) + int(mask.keep.sum())
    assert len(set(layers.values())) == 1
    assert plans["global"].masks != plans["per_layer"].masks
    with (
        pytest.raises(CheckpointError, match="expected a state with allocator None"),
        session() as other,
    ):
        other.load_state_dict(state)


class Cheapest:
    """Keeps one head in the layer where heads cost least, and none elsewhere."""

    uses_price = True

    def allocate(self, scores, sites, budget, fractions=None, price=None):
        heads = [site for site in sites if site.name in scores]
        first = min(heads, key=lambda site: price(site, 1))
        masks = {}
        for site in heads:
            keep = torch.zeros(site.shape, dtype=torch.bool)
            keep[int(scores[site.name].argmax())] = site == first
            masks[site.name] = HeadMask(keep)
        return SparsityPlan(masks, sites.fingerprint())


def test_a_price_reaches_an_allocator_that_uses_it_and_no_other():
    model = tiny_model("bert")

    def price(site, units: int) -> float:
        return units * abs(site.layer - 2)

    assert isinstance(Cheapest(), Allocator)
    common = {"method": "magnitude", "budget": "heads=0.9"}
    plan = prune(model, **common, allocator=Cheapest(), price=price)
    assert [int(mask.keep.sum()) for mask in plan.masks.values()] == [0, 0, 1]
    assert plan.notes["allocator"] == "Cheapest"
    with pytest.raises(MethodError, match="expected a price only for an allocator that uses it"):
        prune(model, **common, price=price)
    with pytest.raises(MethodError, match="Cheapest expects a price, got none"):
        prune(model, **common, allocator=Cheapest())


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        ({"allocator": "fair"}, MethodError, "expected an allocator in global, per_layer; got 'f"),
        ({"allocator": 3}, ArgumentError, "to be a string or an Allocator or None, got 3"),
        ({"price": 3}, ArgumentError, "expected price to be callable or None, got 3"),
        ({"min_heads": -1}, MethodError, "at least 0 heads and neurons"),
        ({"min_heads": 1.5}, ArgumentError, "expected min_heads to be a whole number"),
        ({"min_heads": 5}, BudgetError, "at most 4, which is all that layers.0.heads has, got 5"),
        ({"min_neurons": 5}, MethodError, "min_neurons beside a budget that removes neurons"),
        ({"min_heads": 3}, BudgetError, "leaves 3 heads in each layer, got heads=0.5, which remo"),
        ({"allocator": GlobalRanking(), "min_heads": 1}, MethodError, "got 'min_heads'"),
        ({"least": 5}, MethodError, r"the options \['min_heads', 'min_neurons'\], got 'least'"),
    ],
)
def test_what_an_allocator_cannot_do_is_refused(choice, error, words):
    with pytest.raises(error, match=words):
        prune(tiny_model("bert"), method="magnitude", budget="heads=0.5", **choice)


def test_floors_that_a_total_cannot_meet_are_refused(allocator):
    scores = random_scores("heads", 5) | random_scores("neurons", 5)
    with pytest.raises(BudgetError, match=r"floors that let parameters=0.9 go, got some that keep"):
        allocator(min_heads=3, min_neurons=90).allocate(scores, sites_of(), Budget(parameters=0.9))
