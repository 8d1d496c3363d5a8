"""distill: let a pruned model recover by imitating the dense one, without labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import find_sites
from secateurs.checks import check_seed, check_weights, door
from secateurs.data.batches import (
    Batch,
    check_batches,
    evaluation_mode,
    main_output,
    run,
    shown,
    token_weights,
    unlabelled,
)
from secateurs.errors import DataError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan


@door
@torch.enable_grad()
def distill(
    model: nn.Module,
    plan: SparsityPlan,
    batches: Iterable[Batch],
    *,
    teacher: nn.Module | None = None,
    steps: int = 100,
    lr: float = 1e-4,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """A copy of `model` whose kept weights were trained so that, gated by `plan`, it answers like
    `teacher`.

    AdamW on the relative squared difference of the outputs and of every layer's hidden states, on
    tokens that are not padding; linear warm-up over a tenth of the steps, then cosine to zero.
    Pruning leaves the residual stream as wide as it was, so each layer can be held to its own old
    answer (MiniLM without a third of its heads and neurons, 200 steps: 70 % of the gap in cosine
    closed; by outputs alone 63 %). What the plan removes is gated, gets no gradient, and is not
    changed. Hand the result, which is in evaluation mode and as trainable as `model`, to `apply` or
    `convert` with the same plan.

    Args:
        model: a transformers model of a supported family; not changed.
        plan: made for it.
        batches: dicts of tensors as the model takes them; labels are ignored. Cycled through in
            order of a shuffle.
        teacher: the model to imitate; by default `model` itself, ungated. One of another depth or
            width is imitated in its outputs only.
        steps: optimizer steps, one batch each.
        lr: peak learning rate.

    Raises DataError for no data or fewer than one step, PlanError for a plan of another model.
    """
    found = check_batches(batches)
    if steps < 1:
        raise DataError(f"expected at least one step, got {steps}")
    if lr <= 0:
        raise DataError(f"expected a learning rate above 0, got {lr}")
    check_seed(seed)
    check_weights(model)
    sites = find_sites(model)
    plan.validate(sites, sites.fingerprint())
    teacher = model if teacher is None else teacher
    check_weights(teacher)
    student = copy.deepcopy(model).eval()  # evaluation mode: dropout would only blur the target
    trainable = [p.requires_grad for p in student.parameters()]
    layers = [sites.layer(student, index) for index in range(len(sites.layers))]
    parameters = [p.requires_grad_() for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps))),
    )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    picked = islice(cycle(order), steps)
    with evaluation_mode(teacher), Gates(student, sites) as gates:
        gates.set_plan(plan)
        for i in shown(picked, steps, "distill", progress):
            batch = unlabelled(found[i], student)
            with torch.no_grad():
                wanted = _answers(teacher, unlabelled(found[i], teacher))
            loss = _loss(_answers(student, batch), wanted, batch)
            if not bool(torch.isfinite(loss)):
                raise DataError("expected a finite distillation loss, got NaN or infinity")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            length = nn.utils.clip_grad_norm_(parameters, 1.0)
            if not bool(torch.isfinite(length)):
                raise DataError("expected finite gradients, got NaN or infinity")
            optimizer.step()
            schedule.step()
    for parameter, flag in zip(student.parameters(), trainable, strict=True):
        parameter.requires_grad_(flag).grad = None
    return student


def _loss(given: list[Tensor], wanted: list[Tensor], batch: Batch) -> Tensor:
    """How far the student's answers are from the teacher's: all of them where they are alike, else
    the outputs. Raises DataError for outputs of two shapes."""
    wanted = [answer.to(given[0].device) for answer in wanted]
    shapes = [[tuple(answer.shape) for answer in answers] for answers in (given, wanted)]
    if shapes[0][0] != shapes[1][0]:
        raise DataError(
            f"expected a teacher whose outputs are {shapes[0][0]} like the student's, got "
            f"{shapes[1][0]}"
        )
    pairs = list(zip(given, wanted, strict=False))[: None if shapes[0] == shapes[1] else 1]
    return torch.stack([_distance(*pair, batch) for pair in pairs]).sum()


def _answers(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The main output, then the hidden states after each layer."""
    asking: dict[str, Any] = {**batch, "output_hidden_states": True}
    output = run(model, asking)
    return [main_output(output), *(getattr(output, "hidden_states", None) or ())[1:]]


def _distance(given: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    """Squared distance over the squared length of what was wanted, on real tokens."""
    weight = token_weights(wanted, batch)
    length = (wanted.square() * weight).sum().clamp_min(torch.finfo(wanted.dtype).tiny)
    return ((given - wanted).square() * weight).sum() / length
