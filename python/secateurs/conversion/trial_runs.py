"""Trial runs: the ways a model of each kind is called while its layers are watched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.errors import FamilyError
from secateurs.measurement.inputs import pair, samples_of, spectrogram_of

BATCH, TOKENS, PADDING = 2, 6, 2

Step = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Run:
    """One way to call the model: its steps, which tokens count, whether gradients are recorded."""

    name: str
    step: Step
    visible: Tensor | None = None  # bool [B, T]
    gradients: bool = False


def runs_of(model: Any, sites: Sites) -> Iterator[Run]:
    """The ways a model of this kind is called. Raises FamilyError for one that takes neither
    tokens, pixels nor sound."""
    if len(sites.stacks) > 1:
        yield from _runs_of_two_stacks(model.base_model, next(model.parameters()))
        return
    base, like = model.base_model, next(model.parameters())
    takes = inspect.signature(base.forward).parameters
    generator = torch.Generator().manual_seed(0)
    constant = {"use_cache": False} if "use_cache" in takes else {}
    if base.main_input_name == "pixel_values":
        pixels = torch.randn(BATCH, *_image(base.config, takes), generator=generator).to(like)
        if "interpolate_pos_encoding" in takes:
            constant["interpolate_pos_encoding"] = True
        yield Run("plain", lambda model: model(pixel_values=pixels, **constant), gradients=True)
        return
    if base.main_input_name in ("input_values", "input_features"):
        yield from _runs_of_sound(base, generator, like)
        return
    if base.main_input_name != "input_ids":
        raise FamilyError(
            "expected a model of tokens, pixels or sound to compare layers on, "
            f"{type(base).__name__} takes {base.main_input_name}"
        )
    ids = torch.randint(base.config.vocab_size, (BATCH, TOKENS), generator=generator)
    ids = ids.to(like.device)
    visible = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=like.device)
    visible[0, :PADDING] = False  # in front: behind, causality would hide it anyway
    padded = {"input_ids": ids, "attention_mask": visible.long(), **constant}
    yield Run("plain", lambda model: model(input_ids=ids, **constant))
    yield Run("padded", lambda model: model(**padded), visible, gradients=True)
    if sites.architecture.causal and "use_cache" in takes:
        name = "cache" if "cache" in takes else "past_key_values"

        def in_two_steps(model: nn.Module) -> None:
            seen = model(input_ids=ids[:, :-PADDING], use_cache=True)
            model(input_ids=ids[:, -PADDING:], use_cache=True, **{name: getattr(seen, name)})

        yield Run("with a cache", in_two_steps)


def _runs_of_sound(base: Any, generator: torch.Generator, like: Tensor) -> Iterator[Run]:
    """Calls of a model of spectrograms, or of one that makes frames of a waveform itself."""
    config = base.config
    if not hasattr(config, "conv_stride"):
        shape = BATCH, *spectrogram_of(config, base.main_input_name)
        named = {base.main_input_name: torch.randn(shape, generator=generator).to(like)}
        yield Run("plain", lambda model: model(**named), gradients=True)
        return
    samples = [samples_of(config, tokens) for tokens in (TOKENS, TOKENS - PADDING)]
    sound = torch.randn(BATCH, samples[0], generator=generator).to(like)
    heard = torch.ones(BATCH, samples[0], dtype=torch.long, device=like.device)
    heard[0, samples[1] :] = 0
    visible = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=like.device)
    visible[0, -PADDING:] = False
    padded = {"input_values": sound, "attention_mask": heard}
    yield Run("plain", lambda model: model(input_values=sound))
    yield Run("padded", lambda model: model(**padded), visible, gradients=True)


def _image(config: Any, takes: Any) -> tuple[int, int, int]:
    """Channels, height and width of a small image, the model's own size where it takes no other."""
    size = config.image_size
    if "interpolate_pos_encoding" in takes:
        height, width = pair(config.patch_size)
        return config.num_channels, 2 * height, 2 * width
    return (config.num_channels, *pair(size))


def _runs_of_two_stacks(base: Any, like: Tensor) -> Iterator[Run]:
    """Calls of a model with an encoder, of tokens or of a spectrogram, and a decoder."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, base.config.vocab_size, generator=generator)
    name = base.main_input_name
    if name == "input_ids":
        heard = draw((BATCH, TOKENS)).to(like.device)
    else:
        shape = BATCH, *spectrogram_of(base.config, name)
        heard = torch.randn(shape, generator=generator).to(like)
    ids = draw((BATCH, TOKENS)).to(like.device)
    visible = torch.ones(BATCH, TOKENS, dtype=torch.bool, device=like.device)
    visible[0, -PADDING:] = False
    inputs, constant = {name: heard, "decoder_input_ids": ids[:, :-1]}, {"use_cache": False}
    yield Run("plain", lambda model: model(**inputs, **constant), gradients=True)
    if name == "input_ids":
        masks = {"attention_mask": visible.long(), "decoder_attention_mask": visible.long()}
        padded = {name: heard, "decoder_input_ids": ids, **masks, **constant}
        yield Run("padded", lambda model: model(**padded), visible)
    cache = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"

    def in_two_steps(model: nn.Module) -> None:
        seen = model(**{name: heard}, decoder_input_ids=ids[:, :-PADDING], use_cache=True)
        encoded = (seen.encoder_last_hidden_state,)
        held = {cache: getattr(seen, cache), "use_cache": True}
        model(encoder_outputs=encoded, decoder_input_ids=ids[:, -PADDING:], **held)

    yield Run("with a cache", in_two_steps)
