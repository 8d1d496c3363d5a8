"""The contract every method keeps, and what is particular to each."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from pruning.conftest import facts, planned
from support.models import answer, relative
from support.tiny_models import tiny_model

from secateurs import METHODS, Budget, SparsityPlan, apply, convert, explain, find_sites, prune
from secateurs.errors import BudgetError, DataError, MethodError, PlanError
from secateurs.pruning import Needs
from secateurs.pruning.allocation import GlobalRanking, PerLayer
from secateurs.pruning.allocation.units import in_blocks

ONE_SHOT = [name for name, row in METHODS.items() if Needs.TRAINING not in row.needs]
HEADED = ("roberta", "vit")
OF_EACH_KIND = pytest.mark.parametrize("family", ["roberta", "llama", "vit"])
"""What a method or an allocator does alike on all families is seen on one with a head, one with
shared keys and a gate, and one of images."""
BUDGETS = {
    "heads": "heads=0.4",
    "neurons": "neurons=0.3",
    "heads and neurons": "heads=0.25,neurons=0.6",
    "parameters": "parameters=0.45",
    "macs": "macs=0.3,seq_len=16",
    "modules": "modules=0.5",
    "blocks": "blocks=0.5,block=32x16",
    "weights": "weights=0.7",
    "vector patterns": "patterns=0.75,vector=16",
    "2:4": "patterns=0.5,pattern=2:4",
    "library": "patterns=0.25,pattern=library",
}


@pytest.fixture(params=ONE_SHOT)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def labels_where_they_are_needed(request: pytest.FixtureRequest) -> None:
    """A method that needs a loss runs on the families whose tiny models have a head."""
    names = request.fixturenames
    if "method" not in names or not facts(request.getfixturevalue("method")).labelled:
        return
    if "family" in names and request.getfixturevalue("family") not in HEADED:
        pytest.skip("the tiny model has no task head")
    for batch in request.getfixturevalue("batches"):
        batch["labels"] = torch.arange(3) % 2


def budgets_of(method: str) -> list[str]:
    if facts(method).whole_layers:
        return [f"{unit}={share}" for unit in METHODS[method].produces for share in (0.5, 0.25)]
    return [t for t in BUDGETS.values() if Budget.parse(t).kinds() <= METHODS[method].produces]


def steps_of(method: str, unit: str) -> tuple[float, ...]:
    """Fractions that can be removed of a unit."""
    fine = unit != "patterns" and not facts(method).whole_layers
    return (0.1, 0.35, 0.6, 0.9) if fine else (0.25, 0.5, 0.75)


def test_masks_fit_and_the_budget_is_met_to_one_unit(method, model, batches):
    sites = find_sites(model)
    for text in budgets_of(method):
        plan, budget = planned(method, model, batches, text), Budget.parse(text)
        plan.validate(sites, sites.fingerprint())
        for kind, fraction in budget.asked().items():
            if kind in ("parameters", "macs"):
                check_total(sites, plan, kind, 1 - fraction, budget.seq_len)
                continue
            unit = {"heads": "heads", "neurons": "neurons", "modules": "module"}.get(kind)
            found = sites.of_kind(unit or "linear")
            masks = [m for s in found if (m := plan.masks.get(s.name))]
            total = sum(m.keep.numel() for m in masks)
            assert len(masks) == len(found) - (len(sites.layers) if kind == "modules" else 0)
            gone = total - sum(int(m.keep.sum()) for m in masks)
            assert abs(gone - fraction * total) <= 0.5


def check_total(sites, plan, kind, wanted, seq_len) -> None:
    """At most what the budget allows, and more as soon as any one removed unit comes back."""
    kept = sites.density(plan, seq_len)[kind]
    assert kept <= wanted
    one_back = []
    for name, mask in plan.masks.items():
        for i in (~mask.keep).nonzero().flatten().tolist()[:3]:
            keep = mask.keep.clone()
            keep[i] = True
            more = SparsityPlan({**plan.masks, name: type(mask)(keep)})
            one_back.append(sites.density(more, seq_len)[kind])
    assert max(one_back) > wanted


@OF_EACH_KIND
def test_one_seed_gives_one_plan(method, model, batches):
    for text in budgets_of(method):
        first = planned(method, model, batches, text, seed=3)
        assert planned(method, model, batches, text, seed=3) == first


@OF_EACH_KIND
def test_only_a_seeded_method_depends_on_the_seed(method, model, batches):
    differs = False
    for text in budgets_of(method):
        plans = [planned(method, model, batches, text, seed=seed) for seed in range(4)]
        first, *others = [SparsityPlan(plan.masks) for plan in plans]
        differs |= any(other != first for other in others)
    assert facts(method).seeded or not differs


@OF_EACH_KIND
def test_a_bigger_budget_never_keeps_more(method, model, batches):
    sites = find_sites(model)
    for unit in sorted(METHODS[method].produces):
        size = {"blocks": ",block=16", "patterns": ",vector=8"}.get(unit, "")
        kept = []
        for fraction in steps_of(method, unit):
            plan = planned(method, model, batches, f"{unit}={fraction}{size}")
            kept.append(plan)
        for less, more in itertools.pairwise(kept):
            for name, mask in more.masks.items():
                if facts(method).nested or facts(method).whole_layers:
                    assert mask.keep.sum() <= less.masks[name].keep.sum()
                if facts(method).nested:
                    assert not bool((mask.keep & ~less.masks[name].keep).any())
        assert sites.density(kept[-1])["parameters"] < sites.density(kept[0])["parameters"]


def test_the_model_is_untouched_while_planning(method, model, batches):
    model.train()
    state, buffers = copy.deepcopy(model.state_dict()), dict(model.named_buffers())
    for budget in budgets_of(method)[:2]:
        planned(method, model, batches, budget)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert dict(model.named_buffers()).keys() == buffers.keys()
    hooks = [
        h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks)
    ]
    assert all("transformers" in str(getattr(h, "__module__", None)) for h in hooks)


def test_the_plan_survives_save_load_and_merge(method, model, batches, tmp_path):
    plan = planned(method, model, batches, budgets_of(method)[-1])
    plan.save(tmp_path / "plan")
    loaded = SparsityPlan.load(tmp_path / "plan")
    assert loaded == plan
    assert loaded.notes["method"] == method
    assert plan.merge(loaded) == plan


def test_the_plan_converts(method, model, batches, batch):
    for budget in budgets_of(method):
        plan = planned(method, model, batches, budget)
        want = answer(apply(model, plan), batch)
        assert relative(answer(convert(model, plan), batch), want) < 1e-5


def test_weights_that_are_not_finite_are_refused(method, model, batches):
    sites = find_sites(model)
    with torch.no_grad():
        sites.linear(model, 0, "output").weight[0, 0] = float("nan")
    if facts(method).needs == Needs.NOTHING:  # the plan is made, and refused where it is used
        with pytest.raises(PlanError, match="NaN or infinity"):
            apply(model, planned(method, model, batches, budgets_of(method)[0]))
        return
    with pytest.raises(MethodError, match=r"finite scores|NaN"):
        planned(method, model, batches, budgets_of(method)[0])


def test_budgets_a_method_cannot_serve_are_refused(model, batches):
    with pytest.raises(MethodError, match="the budget names blocks"):
        planned("gradient", model, batches, "blocks=0.5")
    with pytest.raises(BudgetError, match="block 48 does not divide"):
        planned("magnitude", model, None, "blocks=0.5,block=48")


def test_unknown_methods_and_options_are_refused(model):
    with pytest.raises(MethodError, match="expected a method in random, magnitude, gradient"):
        prune(model, method="guess", budget="heads=0.5")
    with pytest.raises(MethodError, match="got 'speed'"):
        prune(model, method="random", budget="heads=0.5", speed=3)
    with pytest.raises(MethodError, match="at least one round"):
        prune(model, method="gradient", budget="heads=0.5", rounds=0)


@pytest.mark.parametrize(
    "batches", [None, [], [torch.ones(2)], [{"input_ids": torch.ones(0, 4).long()}]]
)
def test_empty_and_malformed_data_is_refused(batches):
    with pytest.raises(DataError, match="expected"):
        prune(tiny_model("bert"), batches, method="gradient", budget="heads=0.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heads=0", "between 0 and 1"),
        ("heads=1", "between 0 and 1"),
        ("heads=13", "between 0 and 1, got 13"),
        ("heads=-0.5", "between 0 and 1"),
        ("heads=nan", "between 0 and 1"),
        ("heads=half", "a number"),
        ("ears=0.5", "expected a budget like"),
        ("", "expected a budget like"),
        ("seq_len=5", "got none"),
        ("parameters=0.5,heads=0.5", "stand alone"),
        ("heads=0.5,vector=0", "at least 1"),
        ("heads=0.5,block=0", "expected a block such as 32 or 128x32, got"),
        ("heads=0.5,block=32x", "expected a block such as"),
        ("heads=0.5,block=8x8x8", "expected a block such as"),
        ("heads=0.5,block=1.5", "expected a block such as"),
        ("blocks=0.5,weights=0.5", "expected one of blocks, weights, patterns"),
        ("patterns=0.4", "multiples of 1/4"),
        ("patterns=0.5,pattern=paisley", "expected a pattern in"),
        ("patterns=0.25,pattern=2:4", "removes half"),
    ],
)
def test_bad_budgets_are_refused(text, words):
    with pytest.raises(BudgetError, match=words):
        Budget.parse(text)


def test_blocks_come_in_the_forms_people_have():
    forms = [32, "32", "32x32", (32, 32), [32, 32], np.int64(32)]
    assert {Budget(blocks=0.5, block=form) for form in forms} == {
        Budget(blocks=0.5, block=(32, 32))
    }
    assert Budget(blocks=0.5, block="128X32").tile == (128, 32)
    assert Budget(blocks=0.5).tile == (32, 32)
    for form in (True, 0, -8, 32.0, (), (8, 8, 8), (True, 8), "a", "", {8, 9}):
        with pytest.raises(BudgetError, match="expected a block such as 32 or 128x32, got"):
            Budget(blocks=0.5, block=form)


def test_blocks_are_larger_by_default_on_a_gpu_where_they_fit():
    """128 outputs by 32 inputs; square ones where heads are sliced off too, or a linear is
    smaller."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    wide = find_sites(tiny_model("bert", **sizes, num_attention_heads=4))
    narrow = find_sites(tiny_model("bert"))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    asked = Budget(blocks=0.5)
    assert in_blocks(asked, wide, gpu).tile == (128, 32)
    assert in_blocks(asked, wide, cpu).tile == in_blocks(asked, narrow, gpu).tile == (32, 32)
    given, both = Budget(blocks=0.5, block=16), Budget(blocks=0.5, heads=0.5)
    assert in_blocks(given, wide, gpu) == given
    assert in_blocks(both, wide, gpu) == both


@pytest.mark.parametrize("precision", [None, "int8"])
def test_wide_blocks_run_on_the_cpu_as_narrower_ones(precision, batch):
    model = tiny_model("bert", hidden_size=128, num_attention_heads=4, intermediate_size=256)
    plan = prune(model, method="magnitude", budget="blocks=0.75,block=128x64")
    fast = convert(model, plan, precision=precision)
    assert "of the 64x64 blocks are stored" in str(explain(fast))
    assert relative(answer(fast, batch), answer(apply(model, plan), batch)) < (
        0.05 if precision else 1e-5
    )


def test_magnitude_removes_the_smallest(batches):
    model = tiny_model("bert")
    sites = find_sites(model)
    with torch.no_grad():
        for role, rows in (("query", True), ("key", True), ("value", True), ("output", False)):
            weight = sites.linear(model, 1, role).weight
            (weight[16:32] if rows else weight[:, 16:32]).mul_(0.01)
        sites.linear(model, 2, "up").weight[7].mul_(0.01)
        sites.linear(model, 2, "down").weight[:, 7].mul_(0.01)
        sites.linear(model, 0, "key").weight[32:48, :16].mul_(1e-4)
    heads = prune(model, method="magnitude", budget="heads=0.09")
    assert (~heads.masks["layers.1.heads"].keep).nonzero().tolist() == [[1]]
    assert heads.masks["layers.0.heads"].keep.all()
    neurons = prune(model, method="magnitude", budget="neurons=0.004")
    assert (~neurons.masks["layers.2.neurons"].keep).nonzero().tolist() == [[7]]
    blocks = prune(model, method="magnitude", budget="blocks=0.002,block=16")
    assert not blocks.masks["layers.0.key"].keep[2, 0]
    with torch.no_grad():
        for role in ("up", "down"):
            sites.linear(model, 1, role).weight.mul_(0.5)
    modules = prune(model, method="magnitude", budget="modules=0.17")
    assert [name for name, mask in modules.masks.items() if not mask.keep] == ["layers.1.ffn"]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_magnitude_is_the_root_mean_square_of_all_that_a_unit_owns(family):
    """A loop over single units and their slices of every linear, each linear weighing the same."""
    model = tiny_model(family)
    sites = find_sites(model)
    pruner = METHODS["magnitude"].pruner()
    pruner.start(model, sites, Budget(heads=0.5, neurons=0.5), seed=0)
    scores = pruner.scores()
    for index, shape in enumerate(sites.layers):
        weights = {
            role: sites.linear(model, index, role).weight.detach().double()
            for role in shape.linears()
        }
        for head in range(shape.heads):
            shared = head // (shape.heads // shape.kv_heads)
            slices = [weights["query"][16 * head : 16 * head + 16],
                      weights["output"][:, 16 * head : 16 * head + 16]]  # fmt: skip
            slices += [weights[r][16 * shared : 16 * shared + 16] for r in ("key", "value")]
            want = math.sqrt(sum(float((s**2).mean()) for s in slices) / 4)
            assert float(scores[f"layers.{index}.heads"][head]) == pytest.approx(want)
        for neuron in range(shape.neurons):
            slices = [weights[r][neuron] for r in ("up", "gate") if r in weights]
            slices.append(weights["down"][:, neuron])
            want = math.sqrt(sum(float((s**2).mean()) for s in slices) / len(slices))
            assert float(scores[f"layers.{index}.neurons"][neuron]) == pytest.approx(want)


def test_a_budget_of_parameters_takes_the_fewest_units():
    sites = find_sites(tiny_model("bert"))
    scores = {f"layers.{i}.neurons": torch.rand(96) for i in range(3)}
    total = 3 * (4 * 64 * 64 + 2 * 64 * 96)
    for fraction, allocator in itertools.product((0.01, 0.1, 0.25, 0.4), (GlobalRanking, PerLayer)):
        plan = allocator().allocate(scores, sites, Budget(parameters=fraction))
        gone = sum(int((~mask.keep).sum()) for mask in plan.masks.values())
        assert gone == math.ceil(fraction * total / (2 * 64))


def test_labels_need_a_model_with_a_loss(batch):
    labelled = {**batch, "labels": torch.tensor([0, 1, 0])}
    with pytest.raises(DataError, match="expected a model with a task head"):
        planned("gradient", tiny_model("bert"), [labelled], "heads=0.5")


def test_inputs_the_model_does_not_take_are_refused(batch):
    for wrong in ({"tokens": batch["input_ids"]}, {"input_ids": batch["input_ids"] + 1000}):
        with pytest.raises(DataError, match="expected a batch that BertModel takes"):
            planned("gradient", tiny_model("bert"), [wrong], "heads=0.5")


def test_a_vector_pattern_keeps_the_inputs_whose_scores_sum_highest():
    """Of four inputs two stay for two outputs: sums 4, 3, 1, 3.6; the second has the largest
    square."""
    model = tiny_model("bert")
    sites = find_sites(model)
    scores = {site.name: torch.rand(site.shape) for site in sites.of_kind("linear")}
    scores["layers.0.up"][:2, :4] = torch.tensor([[2.0, 3.0, 0.0, 1.8], [2.0, 0.0, 1.0, 1.8]])
    budget = Budget(patterns=0.5, vector=2)
    keep = GlobalRanking().allocate(scores, sites, budget).masks["layers.0.up"].keep
    assert keep[:2, :4].tolist() == [[True, False, False, True]] * 2
    assert keep[2:4].sum() == 64
