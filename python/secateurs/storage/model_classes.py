"""The class of a saved model: one of transformers' own, or one that this process has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from secateurs.architectures.records import ARCHITECTURES
from secateurs.errors import CheckpointError
from secateurs.storage.blueprint import is_stock


def class_of(
    values: Mapping[str, Any], given: type[nn.Module] | None, directory: Path
) -> type[nn.Module]:
    """The class of a saved model: a stock one by its name, an own one that this process has, or the
    one given."""
    name = values["architectures"][0]
    own = values["secateurs"].get("model_class", {"module": "transformers", "name": name})
    stock = own["module"].partition(".")[0] == "transformers"
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, PreTrainedModel)):
            raise CheckpointError(f"expected a class of models as model_class, got {given!r}")
        if given.__name__ != own["name"] or is_stock(given) != stock:
            raise CheckpointError(
                f"expected {own['module']}.{own['name']} as model_class, the class of the model in "
                f"{directory}, got {given.__module__}.{given.__name__}"
            )
        return given
    if not stock:
        known = [cls for cls in _known(PreTrainedModel) if _is_named(cls, own)]
        if len(known) != 1:
            raise CheckpointError(
                f"the model in {directory} is a {own['module']}.{own['name']}, which is not one of "
                f"transformers' own: load it with model_class={own['name']}"
            )
        return known[0]
    cls: type[Any] | None = getattr(transformers, name, None) if name == own["name"] else None
    kind = getattr(cls, "config_class", None)
    if cls is None or kind is None or not issubclass(cls, PreTrainedModel):
        raise CheckpointError(f"this transformers has no architecture {name}")
    if kind.model_type not in ARCHITECTURES or kind.model_type != values["model_type"]:
        raise CheckpointError(
            f"expected a config of {kind.model_type} for {name}, got {values['model_type']!r}"
        )
    return cls


def _known(cls: type[nn.Module]) -> Iterator[type[nn.Module]]:
    """Every class of models that this process has defined or imported; nothing is imported."""
    for kind in cls.__subclasses__():
        yield kind
        yield from _known(kind)


def _is_named(cls: type[nn.Module], name: Mapping[str, Any]) -> bool:
    return (cls.__module__, cls.__name__) == (name["module"], name["name"])
