"""SMP's network, sampling and loss, against computations of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_model
from support.training import labelled
from torch.nn import functional as F

from secateurs import Budget, find_sites, prune
from secateurs.errors import BudgetError, CheckpointError, DataError, MethodError
from secateurs.pruning.map_scorer import MapScorer, load_scorer, save_scorer, square_maps
from secateurs.pruning.methods import smp
from secateurs.pruning.methods.smp import (
    MetaTask,
    MetaTraining,
    SMPPruner,
    attend,
    head_scores,
    meta_train,
    represent,
    representation_loss,
    sampled_heads,
    similarities,
    task_odds,
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlabelled(count=3):
    return [{k: v for k, v in b.items() if k != "labels"} for b in labelled(count)]


def test_the_loss_is_zero_for_the_full_mask_and_positive_for_others():
    x = torch.randn(6, 10, generator=random())
    assert float(representation_loss(x, x)) == pytest.approx(0, abs=1e-7)
    assert float(representation_loss(x + torch.randn(6, 10, generator=random(1)), x)) > 1e-3


def test_the_loss_is_that_of_the_formula():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 7))

    def pairs(x):
        x = x - x.mean(0)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        e = np.exp((10 * x @ x.T).reshape(-1, 2))
        return e / e.sum(1, keepdims=True)

    p, q = pairs(a), pairs(b)
    want = (q * (np.log(q) - np.log(p))).mean()
    assert float(representation_loss(torch.tensor(a), torch.tensor(b))) == pytest.approx(want)
    assert similarities(torch.tensor(a)).shape == (8, 2)


def test_the_network_has_the_published_shape():
    network = MapScorer(random())
    convolutions = [m for m in network.layers if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (8, 1, 4, 4), (16, 8, 4, 4), (32, 16, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (2, 128, 4, 4)
    ]  # fmt: skip
    assert all(c.bias is None for c in convolutions)
    norms = [m for m in network.layers if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 4
    assert abs(float(norms[0].weight.mean().detach()) - 1) < 0.02
    scores = network.eval()(torch.rand(5, 1, 128, 128, generator=random()))
    assert scores.shape == (5, 2)
    assert bool(((scores > 0) & (scores < 2)).all())


@pytest.mark.parametrize("tokens", [9, 128, 140])
def test_maps_are_squares_without_the_rows_of_padding(tokens):
    attention = torch.rand(2, 3, tokens, tokens, generator=random()) + 0.1
    mask = torch.ones(2, tokens)
    mask[1, 4:] = 0
    maps = square_maps(attention, mask)
    assert maps.shape == (2, 3, 128, 128)
    side = min(tokens, 128)
    assert torch.equal(maps[0, :, :side, :side], attention[0, :, :side, :side])
    assert torch.equal(maps[1, :, :4, :side], attention[1, :, :4, :side])
    assert not bool(maps[1, :, 4:].any())
    assert not bool(maps[:, :, side:].any())


@pytest.mark.parametrize(("heads", "keep"), [(12, 6), (16, 8), (5, 2)])
def test_sampled_masks_hold_the_heads_wanted_and_prefer_high_scores(heads, keep):
    """H is the number of heads, whatever the number of layers."""
    scores = torch.zeros(heads, requires_grad=True)
    counts = torch.zeros(heads)
    for seed in range(300):
        mask = sampled_heads(scores + torch.linspace(0, 2, heads), keep, random(seed))
        assert mask.shape == (heads,)
        assert set(mask.detach().round(decimals=5).tolist()) <= {0.0, 1.0}
        assert int((mask > 0.5).sum()) == keep
        counts += mask.detach()
    assert counts[-1] > 1.5 * counts[0]
    (mask * torch.arange(heads)).sum().backward()
    assert scores.grad.abs().sum() > 0


def test_every_layer_loses_as_many_heads_where_layers_and_heads_differ():
    model = tiny_model("bert", num_attention_heads=8, num_hidden_layers=3)
    plan = prune(model, unlabelled(), method="smp", budget="heads=0.25", progress=False)
    assert [int(m.keep.sum()) for m in plan.masks.values()] == [6, 6, 6]


def training(model, seed=0) -> MetaTraining:
    return MetaTraining(model, find_sites(model), MapScorer(random(seed)), random(seed))


def test_meta_training_moves_the_scorer_and_not_the_model():
    model = tiny_model("bert")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    meta = training(model)
    start = {k: v.clone() for k, v in meta.scorer.state_dict().items()}
    losses = [meta.step(batch, pair=False) for batch in unlabelled()]
    assert all(loss > 0 for loss in losses)
    first = "layers.0.weight"
    assert not torch.equal(meta.scorer.state_dict()[first], start[first])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert np.isnan(meta.step({"input_ids": torch.ones(1, 4).long()}, pair=False))
    assert meta.updates == 3
    statistics = [n for n in start if n.endswith("running_mean")]
    assert len(statistics) == 4
    assert not any(torch.equal(meta.scorer.state_dict()[n], start[n]) for n in statistics)


def test_a_trained_scorer_has_the_statistics_of_its_last_batches():
    """Means over whole batches of what its first norm reads, by a convolution of our own."""
    meta = training(tiny_model("bert"))
    for batch in unlabelled():
        meta.step(batch, pair=False)
    meta.settle()
    assert not meta.scorer.training
    means, variances = [], []
    first, second = (meta.scorer.layers[i].weight.detach().double() for i in (0, 2))
    for batch in unlabelled():
        maps, mask, _ = attend(meta.model, batch, pair=False)
        squares = torch.cat([square_maps(m, mask).flatten(0, 1) for m in maps])[:, None].double()
        x = F.conv2d(F.leaky_relu(F.conv2d(squares, first, stride=2, padding=1), 0.2), second,
                     stride=2, padding=1)  # fmt: skip
        means.append(x.mean((0, 2, 3)))
        variances.append(x.transpose(0, 1).flatten(1).var(1))
    norm = meta.scorer.layers[3]
    assert norm.momentum == 0.1
    torch.testing.assert_close(
        norm.running_mean.double(), torch.stack(means).mean(0), rtol=1e-3, atol=1e-9
    )
    torch.testing.assert_close(
        norm.running_var.double(), torch.stack(variances).mean(0), rtol=1e-3, atol=1e-12
    )


def test_a_step_forgets_the_gradients_of_the_last():
    model, (batch,) = tiny_model("bert"), unlabelled(1)
    moved = []
    for left in (None, 1e3):
        meta = training(model)
        for parameter in meta.scorer.parameters():
            parameter.grad = None if left is None else torch.full_like(parameter, left)
        meta.step(batch, pair=False)
        moved.append(meta.scorer.state_dict())
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_a_step_is_the_loss_of_half_the_heads_in_half_the_layers(monkeypatch):
    """Against a model whose heads are cut by hand, where no feature is dropped."""
    from secateurs import HeadMask, SparsityPlan, apply

    monkeypatch.setattr(smp, "FEATURES_DROPPED", 0.0)
    model = tiny_model("bert", num_attention_heads=8, num_hidden_layers=3)
    (batch,) = unlabelled(1)
    drawn = []

    def sample(scores, keep, generator):
        drawn.append(sampled_heads(scores, keep, generator))
        return drawn[-1]

    monkeypatch.setattr(smp, "sampled_heads", sample)
    for pair in (False, True):
        drawn.clear()
        got = training(model, seed=5).step(batch, pair)
        assert [int((heads > 0.5).sum()) for heads in drawn] == [4, 4, 4]
        _, _, wanted = attend(model, batch, pair)
        losses = []
        for spared in range(3):
            masks = {
                f"layers.{i}.heads": HeadMask((heads > 0.5).detach())
                for i, heads in enumerate(drawn)
                if i != spared
            }
            _, _, given = attend(apply(model, SparsityPlan(masks)), batch, pair)
            losses.append((1 if pair else 10) * float(representation_loss(given, wanted)))
        assert min(abs(got - loss) for loss in losses) < 1e-4 * got
        assert len({round(loss, 5) for loss in losses}) == 3


def test_a_loss_that_is_not_finite_changes_nothing():
    model = tiny_model("bert")
    meta = training(model)
    (batch,) = unlabelled(1)
    with torch.no_grad():
        model.encoder.layer[2].output.LayerNorm.weight.fill_(torch.inf)
    start = {k: v.clone() for k, v in meta.scorer.named_parameters()}
    assert not np.isfinite(meta.step(batch, pair=False))
    assert all(torch.equal(v, start[k]) for k, v in meta.scorer.named_parameters())
    with pytest.raises(MethodError, match=r"a finite loss .* got NaN or infinity in all of 1"):
        meta.check()


def test_scores_belong_to_their_layer_and_head():
    """More heads than layers; each map by itself through the network."""
    model = tiny_model("bert", num_attention_heads=8, num_hidden_layers=2)
    (batch,) = unlabelled(1)
    scorer = MapScorer(random()).eval()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.mul_(8)
        maps, mask, _ = attend(model, batch, pair=False)
        for pair, channel in ((True, 0), (False, 1)):
            got = head_scores(scorer, maps, mask, pair)
            assert got.shape == (2, 8)
            for i in range(2):
                for h in range(8):
                    each = [
                        scorer(square_maps(maps[i][e : e + 1, h : h + 1], mask[e : e + 1]))
                        for e in range(4)
                    ]
                    want = torch.cat(each)[:, channel].mean()
                    assert float(got[i, h]) == pytest.approx(float(want), rel=1e-5)
        assert float(got.std()) > 1e-3


def test_pairs_are_represented_by_the_pooler_and_sentences_by_their_tokens(batch):
    model = tiny_model("bert")
    output = model(**batch)
    assert torch.equal(represent(output, batch["attention_mask"], True), output.pooler_output)
    mean = represent(output, batch["attention_mask"], False)
    torch.testing.assert_close(mean[0], output.last_hidden_state[0, :5].mean(0))
    other = tiny_model("distilbert")(**batch)
    first = represent(other, batch["attention_mask"], True)
    assert torch.equal(first, other.last_hidden_state[:, 0])


def test_tasks_are_drawn_by_the_fifth_root_of_their_sizes():
    sizes = torch.tensor([2490, 3668, 5749, 8551, 67349, 363846, 392702, 32, 243, 3125])
    assert task_odds(sizes).tolist() == [4, 5, 5, 6, 9, 12, 13, 2, 3, 5]


def test_several_tasks_train_one_scorer(tmp_path, monkeypatch):
    """Each batch keeps the kind of its task, and the larger task gives more of them."""
    model, seen = tiny_model("bert"), []
    step = MetaTraining.step
    monkeypatch.setattr(
        MetaTraining,
        "step",
        lambda self, batch, pair: (
            seen.append((pair, int(batch["input_ids"].sum())))
            or (step(self, batch, pair) if len(seen) < 4 else setattr(self, "batches", 4))
        ),
    )
    small, large = unlabelled(1), unlabelled(12)  # of 4 and of 48 examples: odds 1 to 2
    tasks = [MetaTask(small, pair=True), MetaTask(labelled(12)[:1] * 6 + large[6:])]
    scorer = meta_train(model, tasks, steps=600, seed=1, progress=False)
    pairs = [total for pair, total in seen if pair]
    single = [total for pair, total in seen if not pair]
    assert len(seen) == 600
    assert 150 < len(pairs) < 250
    assert set(pairs) == {int(small[0]["input_ids"].sum())}
    order = [int(b["input_ids"].sum()) for b in tasks[1].batches]
    assert single == [order[i % 12] for i in range(len(single))]
    assert not scorer.training
    save_scorer(scorer, tmp_path / "scorer")
    again = load_scorer(tmp_path / "scorer")
    maps = torch.rand(2, 1, 128, 128, generator=random())
    assert torch.equal(again(maps), scorer(maps))


def test_meta_training_without_data_is_refused(tmp_path):
    model = tiny_model("bert")
    one = [{"input_ids": torch.ones(1, 4).long()}]
    for tasks, steps, words in (
        ([], 5, "a task and a step or more, got 0 and 5"),
        ([MetaTask(unlabelled(1))], 0, "got 1 and 0"),
        ([MetaTask([])], 5, "empty dataset"),
        ([MetaTask(one)], 5, "batches of two examples or more"),
    ):
        with pytest.raises(DataError, match=words):
            meta_train(model, tasks, steps=steps, progress=False)
    with pytest.raises(DataError, match="batches of two examples or more"):
        prune(model, one, method="smp", budget="heads=0.5", progress=False)
    with pytest.raises(CheckpointError, match="cannot write a scorer"):
        save_scorer(MapScorer(random()), tmp_path / "no" / "folder")
    save_scorer(MapScorer(random()), tmp_path / "scorer")
    prune(model, one, method="smp", budget="heads=0.5", artifact=str(tmp_path / "scorer"))


@pytest.mark.parametrize(("rounds", "updates"), [(None, 501), (2, 6)])
def test_a_scorer_learns_from_500_batches_in_whole_passes(monkeypatch, rounds, updates):
    """Of three batches; what scores the heads is one pass more."""
    seen = {"step": 0, "settle": 0}

    def step(self, batch, pair):
        seen["step"] += 1
        self.batches = self.updates = seen["step"]

    monkeypatch.setattr(smp, "UPDATES", 500)
    monkeypatch.setattr(MetaTraining, "step", step)
    monkeypatch.setattr(MetaTraining, "settle", lambda _: seen.update(settle=seen["settle"] + 1))
    options = {} if rounds is None else {"meta_rounds": rounds}
    prune(tiny_model("bert"), unlabelled(), method="smp", budget="heads=0.5", **options)
    assert seen == {"step": updates, "settle": 1}


def test_scores_are_means_over_examples_not_batches():
    model = tiny_model("bert")
    pruner = SMPPruner()
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    with torch.no_grad():  # scores of a fresh network barely differ
        for parameter in pruner.scorer.parameters():
            parameter.mul_(8)
    pruner._round = 1
    (batch,) = unlabelled(1)
    pruner.observe({k: v[:1] for k, v in batch.items()})
    pruner.observe({k: v[1:] for k, v in batch.items()})
    split = torch.stack(list(pruner.scores().values()))
    pruner._sums, pruner._examples = None, 0
    pruner.observe(batch)
    torch.testing.assert_close(split, torch.stack(list(pruner.scores().values())))


def test_a_saved_scorer_prunes_by_one_pass_and_other_models_too(tmp_path):
    model, batches, saved = tiny_model("bert"), unlabelled(), str(tmp_path / "scorer")
    pruner = SMPPruner()
    pruner.start(model, find_sites(model), Budget(heads=0.5), seed=0)
    for batch in batches:
        pruner.observe(batch)
    pruner.end_round()
    save_scorer(pruner.scorer, saved)
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    again = prune(model, batches, method="smp", budget="heads=0.5", artifact=saved, progress=False)
    assert len(passes) == len(batches)
    hook.remove()
    for batch in batches:
        pruner.observe(batch)
    assert again == pruner.plan()
    other = tiny_model("roberta", num_attention_heads=8, num_hidden_layers=5)
    plan = prune(other, batches, method="smp", budget="heads=0.25", artifact=saved, progress=False)
    assert [int(mask.keep.sum()) for mask in plan.masks.values()] == [6] * 5
    (tmp_path / "scorer").write_bytes(b"not one")
    with pytest.raises(CheckpointError, match="cannot read a scorer"):
        prune(model, batches, method="smp", budget="heads=0.5", artifact=saved)
    again.save(saved)
    with pytest.raises(CheckpointError, match="expected a scorer saved by SMP"):
        load_scorer(saved)


def test_labels_change_nothing():
    batches = labelled(2)
    options = {"method": "smp", "budget": "heads=0.5", "progress": False}
    assert prune(tiny_model("roberta"), batches, **options) == prune(
        tiny_model("roberta"), [{k: v for k, v in b.items() if k != "labels"} for b in batches],
        **options,
    )  # fmt: skip


def test_bad_budgets_and_options_are_refused():
    model = tiny_model("bert")
    with pytest.raises(BudgetError, match="a multiple of 1/4, got heads"):
        prune(model, unlabelled(), method="smp", budget="heads=0.4")
    with pytest.raises(MethodError, match="at least one round"):
        prune(model, unlabelled(), method="smp", budget="heads=0.5", meta_rounds=0)
