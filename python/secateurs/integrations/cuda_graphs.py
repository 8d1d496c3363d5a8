"""CUDA graphs of a model: short sequences are not bound by the launches of their kernels.

A graph replays fixed shapes. So sequences are padded to the next of a few lengths, one graph is
captured for each batch size and length on first use, and the outputs are cut back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.checks import door
from secateurs.errors import BackendError, DataError
from secateurs.measurement.graph_recording import Recording

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)

Step = Callable[[Mapping[str, Any]], Any]
Shapes = dict[str, tuple[int, ...]]


@door
def capture(
    model: nn.Module, example_inputs: Mapping[str, Any], lengths: Iterable[int] = LENGTHS
) -> Bucketed:
    """A runner of `model` by CUDA graphs; call it like the model.

    Nothing in a replay synchronises or allocates. The outputs are views of a graph's own memory:
    the next call of the same shape overwrites them, so clone what must last.

    Args:
        model: in eval mode, on one GPU (any, not only the current one), its outputs tensors (a
            decoder: `use_cache=False` among the inputs).
        example_inputs: one call's arguments: tensors `[B, T, ...]` with `input_ids` or
            `inputs_embeds` among them, and constants. Its graph is captured at once.
        lengths: what sequences are padded to; a longer one is refused.

    Raises:
        BackendError: the model is not on a GPU, or on several.
        DataError: the inputs have no sequence, one too long, are elsewhere than the model, or an
            output is no tensor.
    """
    devices = {str(t.device): t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or (device := next(iter(devices.values()))).type != "cuda":
        told = " and ".join(sorted(devices)) or "no tensors"
        raise BackendError(f"expected a model on a GPU to capture CUDA graphs of, got {told}")
    runner = Bucketed(model, lambda inputs: _Graph(model, inputs, device))
    runner.lengths = _ascending(lengths)
    runner(**example_inputs)
    return runner


class Bucketed:
    """Runs a model on sequences padded to one of a few lengths.

    `make_step` prepares the run of one shape, given its padded inputs: a function of such inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        make_step: Callable[[Mapping[str, Any]], Step],
        lengths: Iterable[int] = LENGTHS,
    ) -> None:
        self.model, self.make_step, self.lengths = model, make_step, _ascending(lengths)
        self.steps: dict[Any, tuple[Step, Shapes]] = {}

    @torch.inference_mode()
    def __call__(self, **inputs: Any) -> Any:
        length = _length(inputs)
        bucket = self.bucket(length)
        padded = self.pad(inputs, bucket)
        key = tuple(
            (name, tuple(x.shape), x.dtype) if isinstance(x, Tensor) else (name, x)
            for name, x in sorted(padded.items())
        )
        if key not in self.steps:
            self.steps[key] = (self.make_step(padded), self._sequence_dims(padded, bucket))
        step, dims = self.steps[key]
        return _cut(step(padded), dims, length)

    def bucket(self, length: int) -> int:
        """The length that `length` tokens are padded to. Raises DataError beyond the longest."""
        for bucket in self.lengths:
            if length <= bucket:
                return bucket
        raise DataError(f"expected at most {self.lengths[-1]} tokens, got {length}")

    def pad(self, inputs: Mapping[str, Any], bucket: int) -> dict[str, Any]:
        """The inputs with sequences of `bucket` tokens, and the mask that hides the new ones."""
        length = _length(inputs)
        tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
        padded = dict(inputs)
        if padded.get("attention_mask") is None:
            padded["attention_mask"] = tokens.new_ones(tokens.shape[:2], dtype=torch.long)
        for name, x in padded.items():
            if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != length:
                continue
            value = getattr(self.model.config, "pad_token_id", None) if name == "input_ids" else 0
            fill = x.new_full((x.shape[0], bucket - length, *x.shape[2:]), value or 0)
            padded[name] = torch.cat([x, fill], 1)
        return padded

    def _sequence_dims(self, padded: Mapping[str, Any], bucket: int) -> Shapes:
        """Which dimensions of each output are the sequence's: those that follow a shorter one."""
        shorter = {
            name: x[:, :-1] if isinstance(x, Tensor) and x.dim() > 1 and x.shape[1] == bucket else x
            for name, x in padded.items()
        }
        shapes = [dict(_shapes(self.model(**inputs))) for inputs in (padded, shorter)]
        return {
            path: tuple(
                i for i, (a, b) in enumerate(zip(whole, shapes[1][path], strict=True)) if a != b
            )
            for path, whole in shapes[0].items()
        }


class _Graph:
    """One captured run: copies its inputs in, replays, and returns its own outputs."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], device: torch.device) -> None:
        for name, x in inputs.items():
            if isinstance(x, Tensor) and x.device != device:
                raise DataError(f"expected {name} on {device}, like the model, got {x.device}")
        self.inputs = {k: x.clone() if isinstance(x, Tensor) else x for k, x in inputs.items()}
        self.recording = Recording(lambda: model(**self.inputs), device)

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        for name, x in inputs.items():
            if isinstance(x, Tensor):
                self.inputs[name].copy_(x)
        return self.recording.replay()


def _ascending(lengths: Iterable[int]) -> tuple[int, ...]:
    ordered = tuple(sorted(set(lengths)))
    if not ordered or ordered[0] < 2:
        raise DataError(f"expected lengths from 2, got {ordered}")
    return ordered


def _length(inputs: Mapping[str, Any]) -> int:
    for name in ("input_ids", "inputs_embeds"):
        tokens = inputs.get(name)
        if isinstance(tokens, Tensor) and tokens.dim() >= 2:
            return tokens.shape[1]
    raise DataError(f"expected input_ids or inputs_embeds [B, T, ...], got {sorted(inputs)}")


def _shapes(output: Any, path: str = "") -> Iterable[tuple[str, tuple[int, ...]]]:
    if isinstance(output, Tensor):
        yield path, tuple(output.shape)
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from _shapes(value, f"{path}.{name}")
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from _shapes(value, f"{path}.{i}")
    elif output is not None:
        raise DataError(
            f"expected outputs that are tensors, got a {type(output).__name__} at "
            f"{path or 'the top'} (a decoder wants use_cache=False)"
        )


def _cut(output: Any, dims: Shapes, length: int, path: str = "") -> Any:
    """The output with its sequences cut back to `length` tokens, in views."""
    if isinstance(output, Tensor):
        for dim in dims[path]:
            output = output.narrow(dim, 0, length)
        return output
    if isinstance(output, Mapping):
        parts = {k: _cut(v, dims, length, f"{path}.{k}") for k, v in output.items()}
        return type(output)(**parts) if type(output) is not dict else parts
    if isinstance(output, (tuple, list)):
        return type(output)(_cut(v, dims, length, f"{path}.{i}") for i, v in enumerate(output))
    return output
