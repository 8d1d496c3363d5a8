"""Why a model has no record: what is in the way of families that were looked at, and for any other
one the nearest thing to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateurs.architectures.linears import module_at
from secateurs.architectures.schema import Architecture
from secateurs.errors import FamilyError

_WINDOWS = "its attention runs in windows that shift and grow from stage to stage"
_DISENTANGLED = (
    "its attention is disentangled: scores also hold products of queries and keys with embeddings "
    "of relative positions"
)
_EXPERTS = "its feed-forward networks are a mixture of experts, of which each token takes some"
_ALL_HEADS = "it normalises queries and keys over all heads at once, and a head cannot go alone"
_TWO_STACKS = "it has two stacks of layers: prune its text model and its vision model on their own"

# What is in the way, by kind of model.
IN_THE_WAY: dict[str, str] = {
    "big_bird": "its attention skips blocks of keys, some of them at random",
    "clip": _TWO_STACKS,
    "deberta": _DISENTANGLED,
    "deberta-v2": _DISENTANGLED,
    "gemma3": "it reads text and images: prune its language model on its own",
    "longformer": "its attention has linears of its own for global tokens",
    "olmo2": _ALL_HEADS,
    "olmo3": _ALL_HEADS,
    "siglip": _TWO_STACKS,
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
}
_COUNTS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def why_unknown(model: nn.Module, known: Iterable[Architecture]) -> FamilyError:
    """Why no record of `known` is that of `model`, and what can be done."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if not isinstance(kind, str):
        return FamilyError(f"expected a model of transformers, got {type(model).__name__!r}")
    told = f"expected a model of a kind that docs/families.md lists, got {kind!r}"
    if kind in IN_THE_WAY:
        return FamilyError(f"{told}: {IN_THE_WAY[kind]}")
    if any(getattr(config, name, None) for name in _COUNTS_OF_EXPERTS):
        return FamilyError(f"{told}: {_EXPERTS}")
    # Decoders are like decoders, as far as there are such.
    causal = bool(getattr(model, "can_generate", bool)())
    like = [record for record in known if _has_such_layers(model, record)]
    if not like:
        return FamilyError(f"{told}: its layers are made of other parts than any family's there")
    nearest = min(like, key=lambda record: record.causal != causal).model_type
    return FamilyError(
        f"{told}: its layers are made of the parts that those of {nearest!r} are, so try "
        f"secateurs.register_architecture({kind!r}, like={nearest!r}); convert tells whether they "
        "compute the same"
    )


def _has_such_layers(model: nn.Module, record: Architecture) -> bool:
    """Whether the layers of a model are where a record says, and made of what it says."""
    base = getattr(model, "base_model", model)
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and hasattr(base, "decoder"):
        stacks = [record, record.decoder]
        return all(stack is not None and _has_such_stack(base, stack) for stack in stacks)
    return _has_such_stack(base, record)


def _has_such_stack(base: nn.Module, record: Architecture) -> bool:
    layers = module_at(base, record.layers)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    named = (*layers[0].named_parameters(), *layers[0].named_buffers())
    needed = (*(linear.path for linear in record.linears), *record.norms)
    return all(record.describes(name) for name, _ in named) and all(
        module_at(layers[0], path) for path in needed
    )
