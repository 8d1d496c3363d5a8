"""A peer against the model as transformers runs it: how fast at a mix of shapes, and how near."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.data.batches import Batch, evaluation_mode, is_label, main_output, run
from secateurs.errors import BackendError
from secateurs.measurement.inputs import Shape, token_inputs
from secateurs.measurement.peers import Peer
from secateurs.measurement.peers.apart import Apart, Order, in_turns
from secateurs.measurement.quality import embeddings, vectors
from secateurs.measurement.timing import relative_error

_REPEATS, _SECONDS = 11, 2.0  # of measuring at one shape, at least
_EXAMPLES = 64  # that int8 takes its scales from
_SAME = {torch.float32: 1e-3}  # what a peer may differ by from the model in its own precision
_ROUNDED = 0.1  # in another dtype, whose roundings layers add up


@dataclass(frozen=True)
class PeerFigures:
    """What was measured of a peer.

    Attributes:
        ms: of a call, weighted over the shapes.
        spread: between the 20th and the 80th percentile of `ms`.
        stock: milliseconds of the model as transformers runs it, measured in turns with the peer.
        cosine: the mean of the peer's outputs to those of the model; 1 in the model's own
            precision, in which a peer is held to the model's outputs.
    """

    ms: float
    spread: float
    stock: float
    cosine: float

    @property
    def speedup(self) -> float:
        """Over the model as transformers runs it."""
        return self.stock / self.ms


def figures_of_peer(
    peer: Peer,
    model: nn.Module,
    mix: Mapping[Shape, float],
    *,
    fitted: Sequence[Batch] = (),
    judged: Sequence[Batch] = (),
    min_repeats: int = _REPEATS,
    min_time: float = _SECONDS,
) -> PeerFigures:
    """Build a peer for each shape in turn, hold its outputs to the model's, and time both.

    Args:
        model: dense, on the CPU.
        mix: weights of (batch, tokens) pairs, which add up to 1.
        fitted: batches that int8 takes its scales from.
        judged: batches that tell the cosine of int8, their examples cut or padded to each shape.

    Raises BackendError where the peer cannot be built, gives other outputs than the model in its
    own precision, or cannot be judged.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise BackendError(f"expected a model on the CPU for {peer.label}, got one on {device}")
    totals = np.zeros(4)
    with evaluation_mode(model):
        calibration = _one_by_one(fitted, model) if peer.precision else []
        for shape, weight in mix.items():
            inputs = token_inputs(model, shape)
            order = Order(model, inputs, calibration, torch.get_num_threads())
            with Apart(peer, order) as apart:
                cosine = 1.0
                if peer.precision:
                    cosine = _cosine(apart, model, judged, shape)
                else:
                    _check_same(peer, apart, model, inputs)
                ours, stock = in_turns(
                    apart, model, inputs, min_repeats=min_repeats, min_time=min_time
                )
            low, high = np.quantile(ours, (0.2, 0.8))
            totals += weight * np.array([np.median(ours), high - low, np.median(stock), cosine])
    return PeerFigures(*map(float, totals))


@torch.inference_mode()
def _check_same(peer: Peer, apart: Apart, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Raise BackendError unless a peer answers as the model, padding left out."""
    batch = dict(inputs)
    if "attention_mask" in batch:
        mask = batch["attention_mask"] = batch["attention_mask"].clone()
        mask[:, mask.shape[1] // 2 + 1 :] = 0
    error = relative_error(apart(**batch), (main_output(run(model, batch)).float(),))
    if not error <= _SAME.get(next(model.parameters()).dtype, _ROUNDED):
        raise BackendError(
            f"expected {peer.label} to give the outputs of the model, got a relative distance of "
            f"{error:.1g}"
        )


@torch.inference_mode()
def _cosine(apart: Apart, model: nn.Module, judged: Sequence[Batch], shape: Shape) -> float:
    """The mean cosine of a peer's outputs to those of the model, as `fidelity` compares them."""
    cosines = []
    for batch, examples in _of_shape(_texts(judged), model, shape):
        pair = vectors(apart(**batch)[0], batch), embeddings(model, batch)
        cosines.append(F.cosine_similarity(*pair)[:examples])
    return float(torch.cat(cosines).mean())


def _texts(batches: Sequence[Batch]) -> list[Tensor]:
    """The real tokens of each example. Raises BackendError for other inputs than one text each."""
    texts: list[Tensor] = []
    for batch in batches:
        others = {
            name
            for name, value in batch.items()
            if not is_label(name)
            and name not in ("input_ids", "attention_mask")
            and not (name == "token_type_ids" and not bool(value.any()))
        }
        if others or "input_ids" not in batch:
            raise BackendError(
                "expected examples of one text each, to judge what int8 gives, got "
                f"{', '.join(sorted(others)) or 'other inputs'}"
            )
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids)).bool()
        texts += [row[real] for row, real in zip(ids, mask, strict=True)]
    if not texts:
        raise BackendError("expected examples to judge what int8 gives, got none")
    return texts


def _one_by_one(batches: Sequence[Batch], model: nn.Module) -> list[Batch]:
    """The first examples of `batches`, one in each, without padding."""
    return [
        batch
        for text in _texts(batches)[:_EXAMPLES]
        for batch, _ in _of_shape([text], model, (1, len(text)))
    ]


def _of_shape(
    texts: Sequence[Tensor], model: nn.Module, shape: Shape
) -> Iterator[tuple[dict[str, Tensor], int]]:
    """Batches of a shape, of texts cut or padded to it, and how many of each count: the last one is
    filled up with its own."""
    size, tokens = shape
    padding = getattr(cast(Any, model).config, "pad_token_id", None) or 0
    for start in range(0, len(texts), size):
        chosen = texts[start : start + size]
        ids = torch.full(shape, padding)
        mask = torch.zeros_like(ids)
        for place in range(size):
            text = chosen[place % len(chosen)][:tokens]
            ids[place, : len(text)], mask[place, : len(text)] = text, 1
        yield {"input_ids": ids, "attention_mask": mask}, len(chosen)
