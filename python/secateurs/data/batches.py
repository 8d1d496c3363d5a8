"""Calibration: batches of real inputs, checked, and what is read off a model on them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from secateurs.checks import brief, first_line, fit
from secateurs.errors import DataError, MethodError, SecateursError

Batch = Mapping[str, Tensor]


_QUESTIONS = ("start_positions", "end_positions")  # labels by another name
_OUTPUTS = ("logits", "prediction_logits", "reconstruction", "last_hidden_state")


def check_batches(batches: Iterable[Batch] | None) -> list[Batch]:
    """The batches as a list. Raises DataError if there are none, or one is not a dict of tensors of
    one length."""
    found = list(fit("batches", () if batches is None else batches, Iterable, DataError))
    if not found:
        raise DataError("expected at least one batch of data, got an empty dataset")
    for batch in found:
        if not isinstance(batch, Mapping):
            raise DataError(f"expected batches as dicts of tensors, got {brief(batch)}")
        for name, value in batch.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise DataError(
                    f"expected batches as dicts of tensors, got {brief(value)} by {brief(name)}"
                )
            if not value.dim() or value.is_meta:
                raise DataError(
                    f"expected {name} with values for each example, got "
                    f"{'a number' if not value.dim() else 'a tensor on the meta device'}"
                )
        sizes = {value.shape[0] for value in batch.values()}
        if len(sizes) != 1 or sizes == {0}:
            raise DataError(f"expected tensors of one batch size above 0, got {sorted(sizes)}")
    return found


def is_label(name: str) -> bool:
    """Whether a tensor of this name in a batch is what the model's answer is judged by."""
    return "label" in name or name in _QUESTIONS


def check_labels(batches: Iterable[Batch]) -> None:
    """Raise DataError unless all batches have the same labels, or none has any: losses of two kinds
    do not add up."""
    kinds = {tuple(sorted(filter(is_label, batch))) for batch in batches}
    if len(kinds) > 1:
        told = " and ".join(", ".join(names) or "none" for names in sorted(kinds))
        raise DataError(f"expected the same labels in every batch, got {told}")


def batch_size(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def to_device(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """The batch where the model is; tensors made under `torch.inference_mode` as copies, for no
    gradient may pass by them."""
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in batch.items()}
    return {n: v.clone() if v.is_inference() else v for n, v in moved.items()}


def unlabelled(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """`batch` without its labels, on the device of `model`; what its decoder would read of them, if
    it has one, stays."""
    moved = to_device(batch, model)
    inputs = {name: value for name, value in moved.items() if not is_label(name)}
    read_by_decoder = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if read_by_decoder is not None and "labels" in moved and "decoder_input_ids" not in moved:
        inputs["decoder_input_ids"] = read_by_decoder(labels=moved["labels"])
    return inputs


def made_for_gradients(model: nn.Module) -> nn.Module:
    """`model`, or a copy where it was made under `torch.inference_mode`: through such weights no
    gradient may pass."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model) if any(t.is_inference() for t in tensors) else model


def shown(items: Iterable[Any], total: int, label: str, progress: bool) -> Iterator[Any]:
    """`items` behind a progress bar, shown on a terminal once the pass has taken two seconds."""
    return iter(
        tqdm(
            items, total=total, desc=label, delay=2, disable=None if progress else True, leave=False
        )
    )


def run(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """`model(**batch)`, an output by names. Raises DataError if the model does not take these
    inputs."""
    named = getattr(getattr(model, "config", None), "return_dict", True)
    try:
        return model(**batch) if named else model(**batch, return_dict=True)
    except (SecateursError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"expected a batch that {type(model).__name__} takes, got one of "
            f"{', '.join(batch)}: {first_line(error)}"
        ) from error


def loss_of(output: Any) -> Tensor:
    """The loss in an output. Raises DataError if there is none, MethodError if it is not finite."""
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise DataError(
            "the batch has labels, but the model returns no loss: expected a model with a task head"
        )
    if not bool(torch.isfinite(loss).all()):
        raise MethodError(
            "expected a finite loss on each batch, got NaN or infinity: some labels must count "
            "(-100 does not), and weights and inputs be finite"
        )
    return loss


def main_output(output: Any) -> Tensor:
    """Return what a model is for: its logits (those of where an answer starts and ends as
    `[B, T, 2]`), else its last hidden states. Raises DataError for other outputs."""
    for name in _OUTPUTS:
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    ends = [getattr(output, name, None) for name in ("start_logits", "end_logits")]
    if all(isinstance(end, Tensor) for end in ends):
        return torch.stack(ends, -1)  # type: ignore[arg-type]
    raise DataError(
        f"expected an output with logits or last_hidden_state, got {type(output).__name__}"
    )


def class_logits(output: Any) -> Tensor:
    """The main output with its classes last: of where an answer starts and ends, `[B, 2, T]`, these
    are the tokens."""
    found = main_output(output)
    return found.transpose(1, 2) if getattr(output, "start_logits", None) is not None else found


def mask_of(batch: Mapping[str, Any], stack: str) -> Tensor | None:
    """The mask of the tokens of a stack of layers, by its name; None where there is none."""
    name = "decoder_attention_mask" if stack == "decoder" else "attention_mask"
    mask: Tensor | None = batch.get(name)
    return mask


def token_weights(output: Tensor, batch: Batch) -> Tensor:
    """Ones, or zeros where `output` `[B, T, ...]` stands at padding: what a comparison of outputs
    should count."""
    decoded = any(name.startswith("decoder_") for name in batch)
    mask = mask_of(batch, "decoder" if decoded else "")
    if mask is not None and mask.dim() == 3:  # of choices [B, C, T], which a model runs as B * C
        mask = mask.flatten(0, 1)
    if mask is None or output.dim() < 3 or mask.shape != output.shape[:2]:
        return torch.ones((), dtype=output.dtype, device=output.device)
    return mask.to(output.dtype).view(*mask.shape, *[1] * (output.dim() - 2))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module is in the mode it was in afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients for the parameters; both as before afterwards."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluation_mode(model):
        model.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for parameter, flag in wanted.items():
                parameter.requires_grad_(flag)
