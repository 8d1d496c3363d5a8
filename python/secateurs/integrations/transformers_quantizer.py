"""Saved folders in transformers: `from_pretrained` and pipelines give what `secateurs.load` does.

The config of a saved folder names us as its quantiser. Before transformers reads weights we empty
its model, and afterwards it becomes the one that `load` makes of the folder. transformers imports
this file while it is half imported itself, so what needs all of it is imported when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from secateurs.errors import CheckpointError

NAME = "secateurs"  # `storage.checkpoint` writes it
# What a call may set and a loaded model still follows; all else is as it was saved.
_FREE = frozenset({"output_hidden_states", "return_dict", "use_cache"})
# Entries of a config that say where it is from, or that we compare apart.
_APART = frozenset({"dtype", "name_or_path", "quantization_config", "transformers_version"})


@register_quantization_config(NAME)
class SecateursConfig(QuantizationConfigMixin):
    """Says that a folder holds a model written by `secateurs.save`; the rest is in its config."""

    def __init__(self, quant_method: str = NAME) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]


@register_quantizer(NAME)
class SecateursQuantizer(HfQuantizer):
    """Fills a model of transformers with what `secateurs.load` reads.

    Raises CheckpointError where the call asks for anything but the saved model: another class,
    settings of the config, several devices; and where `load` does.
    """

    requires_calibration = True  # transformers refuses to quantise a dense model by us

    def update_device_map(self, device_map: Any) -> dict[str, Any] | None:
        """One device for the whole model."""
        self._device = _one_device(device_map)
        return None if device_map is None else {"": self._device}

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        """Empty the model, and let transformers read a file of ours in place of the one that it
        cannot."""
        from secateurs.storage.checkpoint import described

        files: list[str] | None = options["checkpoint_files"]
        if files is None:  # in a call with state_dict and this config
            raise CheckpointError(
                "expected the folder of a pruned model, whose packed tensors no state_dict holds, "
                "got a call without one: call from_pretrained with the folder alone"
            )
        folder, self._dtype = Path(files[0]).parent, model.config.dtype
        values, names = described(folder)
        _check_class(type(model), values["architectures"][0], folder)
        _check_settings(model, values, folder)
        for name in names:
            _fetch(folder, name, model.config)
        self._folder, self._settings = folder, {n: getattr(model.config, n, None) for n in _FREE}
        model._modules.clear()
        model.all_tied_weights_keys = {}
        model._is_hf_initialized = True
        model._keys_to_ignore_on_load_unexpected = {""}
        files[:] = [str(folder / names[-1])]

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        """Make the model the one that `load` reads."""
        from secateurs.conversion.inherited import become
        from secateurs.storage.checkpoint import load

        loaded: Any = load(self._folder, device=self._device, model_class=type(model))
        if loaded.dtype != self._dtype:
            loaded = loaded.to(self._dtype)
        for name, value in self._settings.items():
            if hasattr(loaded.config, name):
                setattr(loaded.config, name, value)
        # One that the call gave, or that lies in the folder in a file of its own.
        given = getattr(model, "generation_config", None)
        if given is not None and not getattr(given, "_from_model_config", True):
            loaded.generation_config = given
        become(model, loaded)

    def is_serializable(self) -> bool:
        """Whether the model can be saved: its own `save_pretrained` does."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained: converted ones are for inference."""
        return False


def _one_device(device_map: Any) -> torch.device:
    """The device of a device map. Raises CheckpointError for several."""
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, str):  # as "auto"; names of devices are dicts by now
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    devices = {str(device) for device in device_map.values()}
    if len(devices) != 1 or devices == {"disk"}:
        raise CheckpointError(
            f"expected one device for a converted model, got {', '.join(sorted(devices))}"
        )
    (device,) = set(device_map.values())
    return torch.device(device)


def _check_class(asked: type[nn.Module], saved: str, folder: Path) -> None:
    if asked.__name__ != saved:
        raise CheckpointError(
            f"{folder} holds a {saved}, got a call for {asked.__name__}: call from_pretrained of "
            f"{saved}, or of the Auto class that gives it"
        )


def _check_settings(model: Any, values: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError where a call changed the config that was saved, or asked for another
    attention than ours."""
    asked = model.config._attn_implementation
    if asked != ("sdpa" if model._supports_sdpa else "eager"):
        raise CheckpointError(
            f"a converted model computes its own attention, got attn_implementation={asked!r}"
        )
    given, saved = (
        config.to_dict() for config in (model.config, type(model.config).from_dict(dict(values)))
    )
    for name in sorted(given.keys() | saved.keys()):
        own = name in _APART or name in _FREE or name.startswith("_")
        if not own and given.get(name) != saved.get(name):
            raise CheckpointError(
                f"expected the settings that {folder} was saved with, {name}="
                f"{saved.get(name)!r}, got {given.get(name)!r}"
            )


def _fetch(folder: Path, name: str, config: Any) -> None:
    """Bring a file of a model that came from a hub into its folder, where it is not there yet."""
    revision = getattr(config, "_commit_hash", None)
    if (folder / name).exists() or revision is None or revision not in folder.parts:
        return
    from transformers.utils.hub import cached_file

    inside = folder.parts[folder.parts.index(revision) + 1 :]
    cached_file(config.name_or_path, name, revision=revision, subfolder="/".join(inside))
