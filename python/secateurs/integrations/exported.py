"""Compact models for other runtimes: a pruned folder becomes a program with batch and length open,
is written for one of them, and held to what the converted model computes."""

from __future__ import annotations

import copy
import inspect
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from secateurs.checks import first_line
from secateurs.conversion.proof import ROUNDED, TOLERANCE
from secateurs.conversion.report import conversion_of
from secateurs.errors import BackendError, CheckpointError
from secateurs.integrations.runtimes import runtime
from secateurs.integrations.sentence_embeddings import open_embedder
from secateurs.measurement.inputs import Shape, token_inputs, tokens_of_an_input
from secateurs.measurement.timing import relative_error
from secateurs.storage.checkpoint import load
from secateurs.storage.compact_export import export_compact
from secateurs.storage.sentence_folders import class_of_folder

_TRACED: Shape = (2, 9)
_CHECKED: tuple[Shape, ...] = ((1, 5), (3, 24))  # neither is what was traced
_OUTPUTS = ("logits", "last_hidden_state")
# Of TOLERANCE, for roundings of all layers; and what a runtime may differ by from torch in float32.
_DEEP, _SAME = 10.0, 1e-3


@dataclass(frozen=True)
class Exported:
    """A model written for another runtime.

    Attributes:
        path: of the file to open.
        output: the name of what it gives.
        compact: the model that was written.
        run: calls it, with inputs by name.
        converted: calls the converted model likewise.
        inputs: random ones of a shape, without padding.
        error: the largest relative distance between the two that was found.
    """

    path: Path
    output: str
    compact: nn.Module
    run: Callable[[Mapping[str, Tensor]], Tensor]
    converted: Callable[[Mapping[str, Tensor]], Tensor]
    inputs: Callable[[Shape], dict[str, Tensor]]
    error: float


class Answer(nn.Module):
    """A model by its main output; of a folder of sentence-transformers, with the modules that make
    embeddings of its states."""

    def __init__(self, model: Any, output: str, behind: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.model, self.behind, self.output = model, nn.ModuleList(behind), output
        takes_cache = "use_cache" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if takes_cache else {}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> Tensor:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }
        batch = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        found: Tensor = self.model(**batch, **self.options)[self.output]
        if not self.behind:
            return found
        features = {**batch, "token_embeddings": found}
        for module in self.behind:
            features = module(features)
        return features["sentence_embedding"]


def export(folder: str | Path, target: str, out: Path, shapes: Sequence[Shape] = ()) -> Exported:
    """Write the compact model of a pruned folder for a runtime, in float32, with batch and length
    open; where all inputs have one size, only the batch. A decoder is written without its cache.

    Args:
        target: a row of RUNTIMES.
        out: a new or empty folder, which is removed again if anything is raised.
        shapes: that the caller will call it with.

    Raises:
        BackendError: a package is not installed, or the runtime does not take the model.
        CheckpointError: `folder` is not one of `save`, no compact model can be made of it, or what
            was written does not compute what the converted model does.
        DataError: a shape that the model does not take.
    """
    row = runtime(target)
    converted, behind = _opened(folder)
    compact: Any = export_compact(converted).float()
    tokens = tokens_of_an_input(compact)

    def inputs(shape: Shape) -> dict[str, Tensor]:
        batch = token_inputs(compact, shape)
        if "input_ids" in batch and getattr(compact.config, "type_vocab_size", 0) > 1:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])  # of pairs of texts
        return batch

    for shape in shapes:
        inputs(shape)
    traced = inputs(_of_tokens(_TRACED, tokens))
    strange = traced.keys() - inspect.signature(Answer.forward).parameters.keys()
    if strange:
        raise BackendError(
            f"expected a model of one stack of layers to export, got a {type(compact).__name__}, "
            f"which takes {', '.join(sorted(strange))}"
        )
    with torch.no_grad():
        given = compact(**traced)
    kind = next((name for name in _OUTPUTS if name in given), None)
    if kind is None:
        raise BackendError(
            f"expected a model with logits or states to export, got {type(compact).__name__}"
        )
    ours, theirs = (Answer(model, kind, behind).eval() for model in (converted, compact))
    output = "sentence_embedding" if behind else kind
    with _removed_on_error(out):
        try:
            program = _program(theirs, traced, tokens is None)
            path = row.write(program, list(traced), output, out)
            run = row.opened(path, output)
        except Exception as error:  # exporters raise whatever they come to
            raise BackendError(
                f"{target} does not take a {type(compact).__name__}: {first_line(error)}"
            ) from error
        batches = [_padded(inputs(_of_tokens(shape, tokens))) for shape in _CHECKED]
        distance = 0.0
        for name, model, allowed in (
            ("compact", theirs, _SAME),
            ("converted", ours, _tolerance(converted)),
        ):
            distance = max(_distance(run(batch), _call(model)(batch), batch) for batch in batches)
            if not distance <= allowed:
                raise CheckpointError(
                    f"expected what the {name} model computes from {path}, got outputs that are "
                    f"{distance:.1e} away (allowed: {allowed:.0e})"
                )
    return Exported(path, output, compact, run, _call(ours), inputs, distance)


def _of_tokens(shape: Shape, tokens: int | None) -> Shape:
    """A shape, with so many tokens where a model makes always as many."""
    return shape if tokens is None else (shape[0], tokens)


@contextmanager
def _removed_on_error(out: Path) -> Iterator[None]:
    """Make the folder `out`, and remove it again if the block raises."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _opened(folder: str | Path) -> tuple[Any, list[nn.Module]]:
    """The converted model of a folder, and what makes embeddings of its states."""
    if class_of_folder(folder) in (None, "CrossEncoder"):
        return load(folder), []
    first, *behind = open_embedder(folder)
    return first.model, [copy.deepcopy(module) for module in behind]


def _program(answer: Answer, batch: Mapping[str, Tensor], open_length: bool) -> ExportedProgram:
    open_sides = (0, 1) if open_length else (0,)
    dims = {name: dict.fromkeys(open_sides, Dim.DYNAMIC) for name in batch}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about itself
        return torch.export.export(answer, (), dict(batch), dynamic_shapes=dims)


def _call(model: nn.Module) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = model(**batch)
        return answer

    return run


def _tolerance(converted: Any) -> float:
    """How far a converted model may be from the same one in float32."""
    precision = conversion_of(converted).precision
    return _DEEP * TOLERANCE[converted.dtype] + (ROUNDED[precision] if precision else 0.0)


def _padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with half of its first example as padding, where there are others, and a mask."""
    if "attention_mask" not in batch:
        return batch
    mask = batch["attention_mask"].clone()
    if len(mask) > 1:
        mask[0, mask.shape[1] // 2 :] = 0
    return {**batch, "attention_mask": mask}


def _distance(got: Tensor, wanted: Tensor, batch: Mapping[str, Tensor]) -> float:
    """The relative distance of two answers, where they stand at tokens at real ones."""
    if got.shape != wanted.shape:
        return math.inf
    mask = batch.get("attention_mask")
    if mask is not None and got.dim() == 3 and got.shape[:2] == mask.shape:
        got, wanted = got[mask.bool()], wanted[mask.bool()]
    return relative_error(got.float(), wanted.float())
