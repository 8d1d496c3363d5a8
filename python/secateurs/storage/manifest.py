"""What the config of a saved model may say, entry by entry: whoever reads on need not ask again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from secateurs.conversion.forms import PRECISIONS
from secateurs.errors import CheckpointError
from secateurs.reading import is_label, is_plain_name, member, only, shown, whole

DTYPES = ("float16", "bfloat16", "float32", "float64")
# Of what is made one by one, or has a mask made of its size, before a tensor is looked at.
MOST_LAYERS, MOST_LABELS, MOST_UNITS = 10_000, 1_000_000, 1_000_000


def check(values: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError unless a config is one that `save` could have written, as far as the
    types of its entries tell; `where` it was read from is for the sentence."""
    block = member(values, "secateurs", "an object", _is_object, where)
    of_block = f"the secateurs block of {where}"
    for name in _NEEDED:
        member(block, name, *_BLOCK[name], of_block)
    only(block, set(_BLOCK), of_block)
    for name in block:
        member(block, name, *_BLOCK[name], of_block)
    for name, (wanted, fits) in _CONFIG.items():
        member(values, name, wanted, fits, where)
    for name in _SWITCHES:
        if name in values:
            member(values, name, "yes or no", lambda v: v is None or isinstance(v, bool), where)
    for name, most in _COUNTED.items():
        if values.get(name) is not None and not whole(values[name], most=most):
            raise CheckpointError(
                f"expected a whole number up to {most} as {name} in {where}, got "
                f"{shown(values[name])}"
            )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return whole(value, most=2**62) or (type(value) is float and math.isfinite(value))


def _object_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: _is_object(value) and all(map(fits, value.values()))


def _is_forms(value: Any) -> bool:
    return (
        _is_object(value)
        and value.keys() == {"machine", "picked"}
        and is_label(value["machine"])
        and _object_of(is_label)(value["picked"])
    )


def _is_digests(value: Any) -> bool:
    return _object_of(is_label)(value) and all(map(is_plain_name, value))


def _is_class(value: Any) -> bool:
    return _object_of(is_label)(value) and value.keys() == {"module", "name"}


_NEEDED = ("format_version", "sha256", "forms")
_BLOCK: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format_version": ("a whole number", whole),
    "sha256": ("digests by names of files", _is_digests),
    "forms": ("a machine and the form of each linear", _is_forms),
    "model_class": ("a module and the name of a class", _is_class),
    "arguments": ("yes or no by names", _object_of(lambda value: isinstance(value, bool))),
    "dtypes": (
        "floating types by names",
        _object_of(lambda value: isinstance(value, str) and value in DTYPES),
    ),
    "tied": ("names by names", _object_of(is_label)),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda v: v in PRECISIONS),
    "unrounded": ("a list of names", lambda v: isinstance(v, list) and all(map(is_label, v))),
    "settings": ("numbers by names", _object_of(_is_number)),
    "generation_config": ("an object", lambda value: value is None or _is_object(value)),
    "replaces": ("a list of names", lambda v: isinstance(v, list) and all(map(is_label, v))),
}
_CONFIG: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "architectures": (
        "a list of one name",
        lambda value: isinstance(value, list) and len(value) == 1 and is_label(value[0]),
    ),
    "dtype": (f"one of {', '.join(DTYPES)}", lambda v: isinstance(v, str) and v in DTYPES),
    "model_type": ("a name", is_label),
}
# What a forward pass branches on, and transformers takes of any type.
_SWITCHES = ("add_cross_attention", "is_decoder", "output_attentions", "output_hidden_states",
             "return_dict", "tie_word_embeddings", "torchscript", "use_cache")  # fmt: skip
_UNITS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
          "head_dim", "dim", "hidden_dim", "n_heads", "num_heads", "d_model", "d_kv", "d_ff",
          "encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim",
          "decoder_ffn_dim")  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers",
           "decoder_layers")  # fmt: skip
_COUNTED = {
    **dict.fromkeys(_LAYERS, MOST_LAYERS),
    "num_labels": MOST_LABELS,
    **dict.fromkeys(_UNITS, MOST_UNITS),
}
