"""Model folders, stock or pruned, with their tokenizers; never the network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

# By its module: early versions of transformers want torchvision for the name in front.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from secateurs.errors import CheckpointError, DataError, SecateursError
from secateurs.reading import check_folder, one_line, read_json, shown, whole
from secateurs.storage import checkpoint
from secateurs.storage.sentence_folders import (
    class_of_folder,
    is_sentence_folder,
    other_modules,
    wants_states,
)

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_ATTENTION = ("eager", "sdpa", "flex_attention")  # all others may be fetched
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_NEW_PARTS = 1 << 24  # weights that a folder need not hold: a new head, buffers of positions


def open_model(path: str | Path) -> nn.Module:
    """The model in a folder, stock or pruned, in evaluation mode; of a folder of
    sentence-transformers the one that they use.

    Raises CheckpointError if there is none, or it cannot be read.
    """
    if is_pruned(path):
        return checkpoint.load(path)
    cls, config = stock_class(path)
    if is_sentence_folder(path):
        other_modules(path)  # is refused before the work, if at all
        if "For" in cls.__name__ and wants_states(path):
            cls = transformers.AutoModel  # as they open it, without the head
    return _from_folder(cls, path, config, "model")


def stock_class(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """The class of transformers that a model folder names, and the folder's whole config. Raises
    CheckpointError if it names none."""
    name, config = _architecture(path)
    cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"expected an architecture of transformers in {path}, got {shown(name)}"
        )
    return cls, config


def has_classifier(path: str | Path, head: str = "SequenceClassification") -> bool:
    """Whether the model in a folder has a head of this kind, as transformers calls it."""
    return _architecture(path)[0].endswith(f"For{head}")


def open_classifier(
    path: str | Path, labels: int, seed: int = 0, head: str = "SequenceClassification"
) -> nn.Module:
    """Read a model with a head for this number of `labels` (1: a score): its own head, or a new one
    made from `seed` where it has none; in evaluation mode.

    Args:
        head: what the name of its class ends in, behind `For`: SequenceClassification,
            TokenClassification or ImageClassification.

    Raises CheckpointError for a folder without a model, DataError for a pruned model or a head with
    other labels.
    """
    if is_pruned(path):
        raise DataError(f"expected a dense model to prune, got one that is pruned in {path}")
    _, config = _architecture(path)
    settings: dict[str, Any] = {"num_labels": labels}
    if has_classifier(path, head):
        named = config.get("id2label")
        has = len(named) if named and isinstance(named, (dict, list)) else 2
        if has != labels:
            raise DataError(f"expected a head with {labels} labels, got one with {has} in {path}")
        settings = {}
    kind = "regression" if labels == 1 else "single_label_classification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _from_folder(
            getattr(transformers, f"AutoModelFor{head}"),
            path,
            config,
            "classifier",
            problem_type=kind,
            **settings,
        )


def check_head_is_used(path: str | Path, head: str) -> None:
    """Raise DataError for a folder of sentence-transformers that would drop such a head from what
    is written after it; before any work, and so for modules that cannot be copied."""
    if is_pruned(path) or not is_sentence_folder(path):
        return
    other_modules(path)
    if wants_states(path) or not has_classifier(path, head):
        raise DataError(
            "expected a folder whose head sentence-transformers use, as a CrossEncoder's, got "
            f"a {class_of_folder(path)} in {path}, which would drop it"
        )


def open_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a model folder. Raises DataError if it has none."""
    try:
        check_folder(path)
        return transformers.AutoTokenizer.from_pretrained(path, **_LOCAL)
    except Exception as error:  # tokenizers and their files raise whatever they come to
        raise DataError(f"expected a tokenizer in {path}: {one_line(error)}") from error


def open_image_processor(path: str | Path) -> Any:
    """The image processor in a model folder. Raises DataError if it has none that can be used."""
    try:
        check_folder(path)
        return AutoImageProcessor.from_pretrained(path, **_LOCAL)
    except Exception as error:  # as of tokenizers
        raise DataError(f"expected an image processor in {path}: {one_line(error)}") from error


def tokenizer_in(path: str | Path) -> Any:
    """The tokenizer in a model folder, None where there is none. Raises DataError for files that
    make none."""
    has_one = any((Path(path) / name).exists() for name in _TOKENIZER)
    return open_tokenizer(path) if has_one else None


def copy_processors(path: str | Path, out: Path, processor: Any) -> None:
    """Write what makes the inputs of a model from its folder to another one: the settings of a
    processor of images or sound, and an opened tokenizer or `processor`, if it is not None."""
    for name in _PROCESSORS:
        if (Path(path) / name).is_file():
            shutil.copyfile(Path(path) / name, out / name)
    if processor is not None:
        processor.save_pretrained(out)


def is_pruned(path: str | Path) -> bool:
    """Whether a model folder was written by `save`. Raises CheckpointError for any other path."""
    return "secateurs" in _config(path)


def _from_folder(
    cls: Any, path: str | Path, found: dict[str, Any], what: str, **settings: Any
) -> nn.Module:
    """What `cls` reads from a folder whose config is `found`, without the network, without code
    that came with it, and without room for more weights than it holds."""
    if found.get("pruned_heads"):
        raise CheckpointError(
            f"expected whole heads in {path}, got a model that transformers 4 removed heads of: "
            "open it with secateurs.open_pruned_heads"
        )
    with readable(path, what):
        checked_skeleton(cls, path, found, **settings)
        model: nn.Module = cls.from_pretrained(path, **_LOCAL, **settings)
        return model.eval()


def checked_skeleton(
    cls: Any, path: str | Path, found: dict[str, Any], **settings: Any
) -> tuple[Any, nn.Module]:
    """The config of a folder, which says `found`, and the model it makes, on the meta device.

    Raises CheckpointError for a config that asks for code, or for more weights than there are.
    """
    _check_attention(found, path)
    _check_labels_and_layers(found, path)
    config = transformers.AutoConfig.from_pretrained(path, **_LOCAL, **settings)
    with torch.device("meta"):
        empty = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    parts = (*empty.parameters(), *empty.buffers())
    if (wanted := sum(part.numel() for part in parts)) > _weight_bytes(path) + _NEW_PARTS:
        raise CheckpointError(
            f"expected a config.json that fits the {_weight_bytes(path)} bytes of weights in "
            f"{path}, got one for {wanted} weights"
        )
    return config, empty


@contextmanager
def readable(path: str | Path, what: str) -> Iterator[None]:
    """Let whatever transformers raises of a stranger's folder be one sentence."""
    try:
        yield
    except SecateursError:
        raise
    except Exception as error:  # a stranger's config ends in any exception of any model
        raise CheckpointError(f"cannot read the {what} in {path}: {one_line(error)}") from error


def _check_attention(config: dict[str, Any], path: str | Path) -> None:
    """Raise CheckpointError for a config that asks for kernels that transformers would fetch and
    run."""
    for name, value in config.items():
        if name.endswith(("_implementation", "_implementation_internal")):
            asked = value.values() if isinstance(value, dict) else (value,)
            if strange := [one for one in asked if one not in (None, *_ATTENTION)]:
                raise CheckpointError(
                    f"expected {', '.join(_ATTENTION)} as {name} in {path}, got {shown(strange[0])}"
                )
        elif isinstance(value, dict):
            _check_attention(value, path)


def _check_labels_and_layers(config: dict[str, Any], path: str | Path) -> None:
    """Raise CheckpointError if a config asks for more layers or labels than weights can hold."""
    room = _weight_bytes(path)
    limits = {"num_labels": room, **dict.fromkeys(_LAYERS, min(room // 256, 1000))}
    for name, most in limits.items():
        if config.get(name) is not None and not whole(config[name], most=most):
            raise CheckpointError(
                f"expected a whole number up to {most} as {name}, for {room} bytes of weights in "
                f"{path}, got {shown(config[name])}"
            )


def _weight_bytes(path: str | Path) -> int:
    """Bytes of all files of weights in a folder."""
    files = (file for end in ("safetensors", "bin") for file in Path(path).glob(f"*.{end}"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _architecture(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The architecture a model folder names, and its whole config."""
    config = _config(path)
    named = config.get("architectures")
    if not named:
        return "None", config
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise CheckpointError(
            f"expected a list of names as architectures in {path}, got {shown(named)}"
        )
    return named[0], config


def _config(path: str | Path) -> dict[str, Any]:
    check_folder(path)
    if not (Path(path) / "config.json").exists():
        raise CheckpointError(f"expected a config.json in {path}, got none")
    return read_json(Path(path) / "config.json")
