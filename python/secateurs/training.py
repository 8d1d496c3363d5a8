"""distill: let a pruned model recover by imitating the dense one, without labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import cycle, islice

import torch
from torch import nn

from secateurs.calibration import (
    Batch,
    check_batches,
    main_output,
    run,
    shown,
    to_device,
    token_weights,
)
from secateurs.errors import DataError
from secateurs.gates import Gates
from secateurs.plan import SparsityPlan
from secateurs.sites import find_sites


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

    AdamW on the mean squared difference of outputs (logits, or hidden states on tokens that are not
    padding), linear warm-up over a tenth of the steps, then cosine to zero. What the plan removes
    is gated, gets no gradient, and is not changed. Hand the result to `apply` or `convert` with the
    same plan.

    Args:
        model: a transformers model of a supported family; not changed.
        plan: made for it.
        batches: dicts of tensors as the model takes them; labels are ignored. Cycled through in
            order of a shuffle.
        teacher: the model to imitate; by default `model` itself, ungated.
        steps: optimizer steps, one batch each.
        lr: peak learning rate.

    Raises DataError for no data or fewer than one step, PlanError for a plan of another model.
    """
    found = check_batches(batches)
    if steps < 1:
        raise DataError(f"expected at least one step, got {steps}")
    sites = find_sites(model)
    plan.validate(sites, sites.fingerprint())
    teacher = model if teacher is None else teacher
    student = copy.deepcopy(model).eval()  # evaluation mode: dropout would only blur the target
    modes = {module: module.training for module in teacher.modules()}
    parameters = [p.requires_grad_() for p in student.get_submodule(sites.path).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps))),
    )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    picked = islice(cycle(order), steps)
    try:
        teacher.eval()
        with Gates(student, sites) as gates:
            gates.set_plan(plan)
            for i in shown(picked, steps, "distill", progress):
                batch = {k: v for k, v in to_device(found[i], student).items() if k != "labels"}
                with torch.no_grad():
                    target = main_output(run(teacher, batch))
                output = main_output(run(student, batch))
                weight = token_weights(output, batch)
                squares = (output - target).square() * weight
                count = weight.expand_as(output).sum()
                loss = squares.sum() / count
                if not bool(torch.isfinite(loss)):
                    raise DataError("expected a finite distillation loss, got NaN or infinity")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return student.requires_grad_(False)
