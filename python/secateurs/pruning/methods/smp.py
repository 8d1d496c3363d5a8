"""SMP: single-shot meta-pruning of attention heads (Zhang et al. 2021, arXiv 2011.03770).

A small convolutional network reads the attention map of a head and gives it a score; the heads with
the lowest mean score over a task's inputs go, equally many in every layer, before any fine-tuning.
The network is trained without labels, on a frozen model: heads are drawn by their scores with hard
Gumbel-softmax samples, half the layers are spared, and the similarities between the
representations of a batch must stay what they were without pruning:

    X = rows of the batch, less their mean, of length 1;  S = 10 X X^T;  softmax over each two
    neighbouring columns;  loss = mean KL(unpruned, pruned)

Both sets of representations lose the same four fifths of their features to one random mask.
Sentence pairs take the pooled representation and the network's first output, single sentences the
mean of the tokens and the second output; their loss counts ten times.

`meta_train` does this on several tasks at once, drawing the task of a batch by the fifth root of
its size, rounded down; `save_scorer` writes what it learnt. With that `artifact` a new task is
pruned by one forward pass over its inputs. Without one the network learns from those inputs first.

Prunes heads. Needs activations: one pass for the scores, before it, if there is no artifact, passes
that train the network, `meta_rounds` or as many as make 500 updates: after less its scores are
hardly other than at the start. Cost: for a batch in meta-training, one plain forward pass, one
more with its backward pass, and the network over every head's map of 128 x 128.

From the authors' code: the network (five 4 x 4 convolutions of 8 to 128 channels, one to two
outputs, 2 sigmoid), its start, SGD with learning rate 0.02 and gradients clipped to 1, 8,000
updates, the sampling of half the heads whatever the budget, and the loss. Departures: their
reshaping of scores by the number of layers where the number of heads is meant is right here; an
update sees one batch (there 8 of 60 examples), whose odd example is left out; without an artifact
the network has seen one task (there seven); the statistics of a
trained network are taken anew from its last 16 batches; a model without a pooler takes its first
token; maps beyond 128 tokens are cropped, equal scores go by position.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.architectures.sites import Sites, find_sites
from secateurs.data.batches import (
    Batch,
    batch_size,
    check_batches,
    evaluating,
    run,
    shown,
    unlabelled,
)
from secateurs.errors import BudgetError, DataError, MethodError
from secateurs.masking.gates import Gates
from secateurs.processes import summed, total
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.per_layer import PerLayer
from secateurs.pruning.allocation.units import kept_heads
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.map_scorer import MapScorer, load_scorer, square_maps

LR = 0.02
FEATURES_DROPPED = 0.8
SHARPNESS = 10.0
SETTLING = 16  # batches that a trained scorer's statistics are of
UPDATES = 500  # that train a scorer by default, at least
SINGLE_SCALE = 10.0  # of the loss of single sentences


def sampled_heads(scores: Tensor, keep: int, generator: torch.Generator) -> Tensor:
    """A mask `[H]` of zeros and ones for `scores` `[H]`: the union of hard Gumbel-softmax samples,
    as many as it takes to hold `keep` heads, of at most 5 H; gradients pass to the scores."""
    heads = scores.numel()
    uniform = torch.rand(5 * heads, heads, generator=generator).clamp_min(1e-20).to(scores)
    soft = (scores - (-uniform.log()).log()).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), heads).to(scores)
    samples = hard + soft - soft.detach()
    union = samples[0]
    for sample in samples[1:]:
        if int((union > 0.5).sum()) >= keep:
            break
        union = torch.maximum(union, sample)
    return union


def similarities(representations: Tensor) -> Tensor:
    """Logits `[B * B / 2, 2]` of every representation `[B, d]` against pairs of others; B even."""
    centred = F.normalize(representations - representations.mean(0), dim=1)
    return (SHARPNESS * centred @ centred.T).view(-1, 2)


def representation_loss(pruned: Tensor, unpruned: Tensor) -> Tensor:
    """Mean elementwise KL divergence of the similarities of `pruned` `[B, d]` from those of
    `unpruned`; 0 where both are alike."""
    student = similarities(pruned).log_softmax(-1)
    teacher = similarities(unpruned).log_softmax(-1)
    return F.kl_div(student, teacher, log_target=True, reduction="none").mean()


@dataclass(frozen=True)
class MetaTask:
    """Inputs of one task for meta-training: batches, whose labels are ignored, and whether they are
    sentence pairs."""

    batches: Sequence[Batch]
    pair: bool = False


def meta_train(
    model: nn.Module,
    tasks: Sequence[MetaTask],
    *,
    steps: int = 8000,
    seed: int = 0,
    progress: bool = True,
) -> MapScorer:
    """A scorer trained on the inputs of `tasks`, for `save_scorer`.

    Args:
        model: a pretrained transformers model of a supported family; it is not changed.
        steps: batches in all. Each is of a task drawn with a probability that is proportional to
            its number of examples to the power of 0.2, rounded down; those of a task come in order,
            over and over.

    Raises DataError for no tasks, no batches, or none of at least two examples; MethodError if no
    loss was finite.
    """
    if not tasks or steps < 1:
        raise DataError(f"expected a task and a step or more, got {len(tasks)} and {steps}")
    inputs = [check_batches(task.batches) for task in tasks]
    sizes = torch.tensor([sum(map(batch_size, batches)) for batches in inputs])
    generator = torch.Generator().manual_seed(seed)
    scorer = MapScorer(generator).to(next(model.parameters()).device)
    training = MetaTraining(model, find_sites(model), scorer, generator)
    chosen = task_odds(sizes).multinomial(steps, replacement=True, generator=generator).tolist()
    endless = [itertools.cycle(batches) for batches in inputs]
    for task in shown(chosen, steps, "meta-training", progress):
        training.step(next(endless[task]), tasks[task].pair)
    training.check()
    training.settle()
    return scorer


def task_odds(sizes: Tensor) -> Tensor:
    """How likely a batch is of each task, up to a factor, by the tasks' numbers of examples."""
    return sizes.double().pow(0.2).add(1e-9).floor()


class MetaTraining:
    """Updates of `scorer`, batch by batch, on a frozen `model`."""

    def __init__(
        self, model: nn.Module, sites: Sites, scorer: MapScorer, generator: torch.Generator
    ) -> None:
        self.model, self.sites, self.scorer, self.generator = model, sites, scorer, generator
        self._optimizer = torch.optim.SGD(scorer.parameters(), lr=LR)
        self._recent: deque[tuple[Batch, bool]] = deque(maxlen=SETTLING)
        self.batches = self.updates = 0

    def step(self, batch: Batch, pair: bool) -> float:
        """One update on one batch; its loss. A batch of odd size loses its last example; one of a
        single example, and one whose loss or gradients are not finite, changes nothing."""
        even = batch_size(batch) // 2 * 2
        if not even:
            return float("nan")
        self.batches += 1
        batch = {name: value[:even] for name, value in unlabelled(batch, self.model).items()}
        self._recent.append((batch, pair))
        with torch.no_grad():
            maps, mask, unpruned = attend(self.model, batch, pair)
        self.scorer.train()
        scores = head_scores(self.scorer, maps, mask, pair)
        masks = [sampled_heads(row, row.numel() // 2, self.generator) for row in scores]
        order = torch.randperm(len(masks), generator=self.generator).tolist()
        spared = set(order[: len(masks) // 2])
        with evaluating(self.model), Gates(self.model, self.sites) as gates:
            for i, heads in enumerate(masks):
                gates[f"layers.{i}.heads"] = torch.ones_like(heads) if i in spared else heads
            output = run(cast(nn.Module, self.model.base_model), batch)
        pruned = represent(output, mask, pair)
        stays = torch.rand(pruned.shape[1], generator=self.generator) >= FEATURES_DROPPED
        features = stays.to(pruned) / (1 - FEATURES_DROPPED)
        loss = representation_loss(pruned * features, unpruned * features)
        loss = loss if pair else SINGLE_SCALE * loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.scorer.parameters(), 1.0)
        if bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self._optimizer.step()
            self.updates += 1
        return float(loss.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Take the statistics of the scorer's norms anew, as means over the last batches: the ones
        gathered on the way begin at 1, which some hundred updates do not forget."""
        norms = [m for m in self.scorer.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean
        self.scorer.train()
        for batch, pair in self._recent:
            maps, mask, _ = attend(self.model, batch, pair)
            head_scores(self.scorer, maps, mask, pair)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.scorer.eval()

    def check(self) -> None:
        """Raise DataError if there was no batch to train the scorer on, MethodError if it learnt
        nothing from all of them."""
        if not self.batches:
            raise DataError("expected batches of two examples or more to meta-train on, got none")
        if not self.updates:
            raise MethodError(
                f"expected a finite loss to meta-train on, got NaN or infinity in all of "
                f"{self.batches} batches"
            )


class SMPPruner(Pruner):
    """Meta-pruning.

    Args:
        pair: whether the inputs are sentence pairs.
        meta_rounds: passes over the data that train the scorer; by default as many as make 500
            updates.
        artifact: file of a trained scorer, which then needs no such passes.
    """

    produces = frozenset({"heads"})
    needs = Needs.ACTIVATIONS
    whole_layers = True
    nested = False  # a scorer without an artifact draws heads, and the seed's numbers with them
    allocator = PerLayer()

    def __init__(
        self,
        pair: bool = False,
        meta_rounds: int | None = None,
        artifact: str | Path | None = None,
    ) -> None:
        if meta_rounds is not None and meta_rounds < 1:
            raise MethodError(f"expected at least one round of meta-training, got {meta_rounds}")
        self.pair, self.artifact, self.meta_rounds = bool(pair), artifact, meta_rounds
        self._round = 0
        self._sums: Tensor | None = None
        self._examples = 0

    @property
    def rounds(self) -> int:  # type: ignore[override]
        """Passes over the data, the last of which is for the scores."""
        if self.artifact:
            return 1
        return (self.meta_rounds or math.ceil(UPDATES / self.batches)) + 1

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites.of_one_stack("SMP"), budget, seed)
        fraction = budget.asked()["heads"]
        kept_heads(sites, fraction)
        if self.allocator is type(self).allocator:
            for shape in sites.layers:
                share = fraction * shape.heads
                if abs(round(share) - share) > 1e-6 or not 0 < round(share) < shape.heads:
                    raise BudgetError(
                        f"SMP prunes equally many heads in every layer: expected a multiple of "
                        f"1/{shape.heads}, got heads={fraction:g}"
                    )
        scorer = load_scorer(self.artifact) if self.artifact else MapScorer(self.generator)
        self.scorer = scorer.to(next(model.parameters()).device)
        self._training = MetaTraining(model, sites, self.scorer, self.generator)

    def observe(self, batch: Batch) -> None:
        if self._round < self.rounds - 1:
            self._training.step(batch, self.pair)
            return
        with torch.no_grad():
            maps, mask, _ = attend(self.model, unlabelled(batch, self.model), self.pair)
            self.scorer.eval()
            scores = head_scores(self.scorer, maps, mask, self.pair)
        size = mask.shape[0]
        self._sums = scores * size if self._sums is None else self._sums + scores * size
        self._examples += size

    def end_round(self) -> None:
        self._round += 1
        if self._round < self.rounds:
            self._training.check()
            if self._round == self.rounds - 1:
                self._training.settle()
        elif self._sums is not None:
            self._sums, self._examples = summed(self._sums), int(total(self._examples))

    def scores(self) -> Mapping[str, Tensor]:
        if self._sums is None:
            raise DataError("SMP expects calibration batches, got none")
        mean = self._sums / self._examples
        return {f"layers.{i}.heads": row for i, row in enumerate(mean)}


def attend(model: nn.Module, batch: Batch, pair: bool) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Maps `[B, H, T, T]` by layer, the mask of real tokens `[B, T]`, and representations
    `[B, d]`."""
    with evaluating(model), _eager(model):
        asking: dict[str, Any] = {**batch, "output_attentions": True}
        output = run(cast(nn.Module, model.base_model), asking)
    mask = batch.get("attention_mask")
    if mask is None:
        mask = torch.ones(output.last_hidden_state.shape[:2], device=output[0].device)
    return output.attentions, mask, represent(output, mask, pair)


def represent(output: Any, mask: Tensor, pair: bool) -> Tensor:
    """`[B, d]`: of sentence pairs the pooled output, of sentences the mean of the real tokens."""
    hidden: Tensor = output.last_hidden_state
    if pair:
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return hidden[:, 0] if pooled is None else pooled
    weights = mask.to(hidden)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def head_scores(scorer: MapScorer, maps: tuple[Tensor, ...], mask: Tensor, pair: bool) -> Tensor:
    """`[L, H]`, the mean over the batch."""
    squares = torch.stack([square_maps(layer, mask) for layer in maps], 1)  # [B, L, H, S, S]
    scores: Tensor = scorer(squares.flatten(0, 2)[:, None])[:, 0 if pair else 1]
    return scores.view(squares.shape[:3]).mean(0)


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Attention that returns its maps; as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
