"""Random inputs that fit a model: token ids, pixels, or sound."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from secateurs.data.batches import run, to_device
from secateurs.errors import DataError

Shape = tuple[int, int]  # examples, tokens


def token_inputs(model: nn.Module, shape: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids of a (batch, tokens) shape, all of them real tokens, as many for a decoder
    behind an encoder; or random pixels or sound for a model of those. Raises DataError for other
    tokens than the model makes of its input, where it takes inputs of one size only, and for a
    decoder behind an encoder of sound."""
    generator, config = torch.Generator().manual_seed(seed), cast(Any, model).config
    name, (batch, tokens) = getattr(model, "main_input_name", "input_ids"), shape
    if name == "input_ids":
        ids = torch.randint(0, config.vocab_size, shape, generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if _has_decoder(model):
            inputs["decoder_input_ids"] = ids
        return to_device(inputs, model)
    signal = torch.randn(batch, *_signal(config, name, tokens), generator=generator)
    inputs = to_device({name: signal.to(cast(Any, model).dtype)}, model)
    if _has_decoder(model):
        raise DataError(f"expected a model of one stack of layers, got {type(model).__name__}")
    made = _tokens(model, {name: inputs[name][:1]})
    if tokens != made:
        raise DataError(f"expected {made} tokens, those of an input of its size, got {tokens}")
    return inputs


def tokens_of_an_input(model: nn.Module) -> int | None:
    """How many tokens a model of images or spectrograms makes of each; None where inputs have
    lengths of their own."""
    config, name = cast(Any, model).config, getattr(model, "main_input_name", "input_ids")
    if name == "input_ids" or hasattr(config, "conv_stride") or _has_decoder(model):
        return None
    signal = torch.zeros(1, *_signal(config, name, 0), dtype=cast(Any, model).dtype)
    return _tokens(model, to_device({name: signal}, model))


def _has_decoder(model: nn.Module) -> bool:
    """Whether a model has a decoder behind an encoder, which takes tokens of its own."""
    both = getattr(cast(Any, model).config, "is_encoder_decoder", False)
    return both and hasattr(getattr(model, "base_model", model), "decoder")


def samples_of(config: Any, frames: int) -> int:
    """The fewest samples of which the convolutions of a model of waveforms make so many frames."""
    convolutions = zip(config.conv_kernel, config.conv_stride, strict=True)
    for kernel, stride in reversed([*convolutions]):
        frames = (frames - 1) * stride + kernel
    return frames


def spectrogram_of(config: Any, name: str) -> tuple[int, int]:
    """The size of the one spectrogram that a model takes by this `name`."""
    if name == "input_features":  # two steps make a token
        return config.num_mel_bins, 2 * config.max_source_positions
    return config.max_length, config.num_mel_bins


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return height, width


def _signal(config: Any, name: str, tokens: int) -> tuple[int, ...]:
    """The shape of one example that is no token ids."""
    if name == "pixel_values":
        return (config.num_channels, *pair(config.image_size))
    if hasattr(config, "conv_stride"):
        return (samples_of(config, tokens),)
    return spectrogram_of(config, name)


@torch.no_grad()
def _tokens(model: nn.Module, example: dict[str, Tensor]) -> int:
    """How many states the layers get of one example."""
    return int(run(model, {**example, "output_hidden_states": True}).hidden_states[0].shape[1])
