"""Gain and cost of pruning: speed over token shapes, fidelity to the dense model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs import ops
from secateurs.data.batches import (
    Batch,
    main_output,
    run,
    shown,
    to_device,
    token_weights,
    unlabelled,
)
from secateurs.data.text import most_tokens
from secateurs.errors import DataError
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.rows import row
from secateurs.measurement.timing import Measurement, measure


@dataclass(frozen=True)
class Fidelity:
    """Cosine between two models' outputs, one for each example."""

    mean: float
    worst_twentieth: float
    """The 5th percentile."""


def speed(
    name: str,
    dense: nn.Module,
    others: Mapping[str, nn.Module],
    shapes: Sequence[Shape],
    *,
    min_time: float = 2.0,
    tolerance: Mapping[str, float] | None = None,
    densities: Mapping[str, float] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """One row per shape for the dense model and each of the others, timed alternately with it.

    Args:
        name: of the model, for the rows.
        others: by variant name.
        shapes: (batch, tokens), filled with random inputs without padding; a model of images has
            the tokens of its image size.
        tolerance: by variant, on the relative error to the dense outputs; one without is pruned and
            means to differ, so that its rows are neither ok nor wrong.
    """
    pairs = [(shape, variant) for shape in shapes for variant in others]
    inputs = {shape: token_inputs(dense, shape) for shape in shapes}
    check_same_inputs(dense, others, inputs)
    found = {
        (shape, variant): measure(
            others[variant], inputs[shape], dense, min_time=min_time, memory=True
        )
        for shape, variant in shown(pairs, len(pairs), "measure", progress)
    }
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        labels: dict[str, Any] = {"model": name, "dtype": dense.dtype, "shape": shape}
        last = found[shape, list(others)[-1]]
        assert last.baseline is not None
        alone = Measurement(last.baseline, last.device)
        rows.append(row(alone, **labels, backend="torch", variant="dense", density=1.0))
        for variant, model in others.items():
            rows.append(
                row(
                    found[shape, variant],
                    **labels,
                    backend=backend_of(model),
                    isa=ops.build_info()["cpu"]["isa"],
                    variant=variant,
                    density=(densities or {}).get(variant),
                    baseline="dense",
                    tolerance=(tolerance or {}).get(variant),
                )
            )
    return rows


@torch.inference_mode()
def check_same_inputs(
    dense: nn.Module, others: Mapping[str, nn.Module], inputs: Mapping[Shape, Batch]
) -> None:
    """Raise DataError unless every model takes all inputs, and answers the smallest as `dense`
    does in shape: before minutes of timing, not after."""
    most = most_tokens(dense)
    for batch, tokens in inputs:
        if most is not None and tokens > most and "input_ids" in inputs[batch, tokens]:
            raise DataError(f"expected shapes of at most {most} tokens, got {batch}x{tokens}")
    smallest = min(inputs.items(), key=lambda item: item[0][0] * item[0][1])[1]
    wanted = main_output(run(dense, smallest)).shape
    for name, model in others.items():
        given = main_output(run(model, to_device(smallest, model))).shape
        if given != wanted:
            raise DataError(
                f"expected {name} to answer like its baseline in shape {tuple(wanted)}, got "
                f"{tuple(given)}"
            )


def fidelity(dense: nn.Module, other: nn.Module, batches: Iterable[Batch]) -> Fidelity:
    """How close `other` stays to `dense`: cosine of their `embeddings` over all examples."""
    cosines = torch.cat(
        [F.cosine_similarity(embeddings(dense, b), embeddings(other, b)) for b in batches]
    )
    return Fidelity(float(cosines.mean()), float(cosines.quantile(0.05)))


@torch.inference_mode()
def embeddings(model: nn.Module, batch: Batch) -> Tensor:
    """One vector per example `[B, D]`: its logits, or mean hidden state of real tokens."""
    batch = unlabelled(batch, model)
    return vectors(main_output(run(model, batch)), batch)


def vectors(output: Tensor, batch: Batch) -> Tensor:
    """One vector per example `[B, D]` of a main output: logits, or mean state of real tokens."""
    return output.double() if output.dim() == 2 else pooled(output, batch)


def pooled(states: Tensor, batch: Batch) -> Tensor:
    """The mean state of the real tokens of each example, `[B, D]` in float64, of `[B, T, D]`."""
    weights = token_weights(states, batch).expand(*states.shape[:2], 1).double()
    return (states.double() * weights).sum(1) / weights.sum(1)


def backend_of(model: nn.Module) -> str:
    """Which backend runs a model's packed products, block-sparse and patterned ones, joined by +
    where they differ; "torch" for a model that has none."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "choice")]
    choices = [module.choice() for module in modules]
    return "+".join(sorted({choice.backend or "none" for choice in choices})) or "torch"
