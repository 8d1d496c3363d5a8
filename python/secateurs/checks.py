"""Arguments at the door: a public function is given what its annotations say it takes, or refuses
in one sentence before it works.

Numbers of numpy become Python's, so that what they end up in can be written as JSON.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import ArgumentError, SecateursError

Function = TypeVar("Function", bound=Callable[..., Any])

SEEDS = 2**32  # what numpy takes
_LONGEST = 60  # characters of a value that a sentence repeats


def door(function: Function) -> Function:
    """`function`, which refuses arguments of other kinds than its annotations name, and works
    outside of `torch.inference_mode`: what is made in there could not be trained or changed.

    Raises ArgumentError; TypeError for a call that does not fit the signature.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        hints = _hints(function)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (inspect._VAR_POSITIONAL, inspect._VAR_KEYWORD):  # type: ignore[attr-defined]
                bound.arguments[name] = fit(name, value, hints[name])
        if not torch.is_inference_mode_enabled():
            return function(*bound.args, **bound.kwargs)
        with torch.inference_mode(False):
            return function(*bound.args, **bound.kwargs)

    return cast(Function, checked)


def read_options(function: Callable[..., Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Words of a command line as keywords of `function`, by what its annotations name. Raises
    ArgumentError for one that is no such thing."""
    hints = _hints(function)
    return {name: _read(name, text, hints.get(name, str)) for name, text in words.items()}


def fit_options(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as keywords of `function`. Raises ArgumentError for a value of another kind than
    its annotation names."""
    hints = _hints(function)
    return {name: fit(name, value, hints.get(name, Any)) for name, value in options.items()}


def fit_fields(record: Any, error: type[SecateursError] = ArgumentError) -> None:
    """Let the fields of a frozen dataclass be of the kinds their annotations name. Raises `error`
    for one that is not."""
    kind: Any = type(record)
    hints = _hints(kind)
    for name in (field.name for field in fields(record)):
        fitted = fit(name, getattr(record, name), hints[name], error)
        object.__setattr__(record, name, fitted)


def fit(name: str, value: Any, hint: Any, error: type[SecateursError] = ArgumentError) -> Any:
    """`value` as the kind that `hint` names. Raises `error` if it is of none."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for one in hints:
        try:
            return _fit(value, one)
        except (_Unfit, OverflowError):
            continue
    raise error(f"expected {name} to be {_either(hints)}, got {brief(value)}")


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as configs, kernels and messages have it: "float16" of torch.float16."""
    return str(dtype).removeprefix("torch.")


def brief(value: Any) -> str:
    """What `value` is, in a few words of one line."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if value is None or isinstance(value, (bool, numbers.Number, str, os.PathLike)):
        told = repr(value)
    elif isinstance(value, (list, tuple, dict, set)) and len(value) < 4:
        told = repr(value) if len(repr(value)) <= _LONGEST else f"a {type(value).__name__}"
    else:
        told = f"class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    told = " ".join(told.split())
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def plain(value: Any) -> Any:
    """A copy of `value` in JSON's own types: numbers of numpy and torch as Python's, paths as
    text. Raises ArgumentError for anything else."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)) or _is_plain_tensor(value):
        return plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ArgumentError(f"expected values that JSON knows, got {brief(value)}")


def check_weights(model: nn.Module) -> None:
    """Raise ArgumentError unless `model` has weights, none of them on the meta device, where those
    that accelerate offloaded are too."""
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if not devices:
        raise ArgumentError(f"expected a model with weights, got a {type(model).__name__} of none")
    if "meta" in devices:
        offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
        why = ": some are offloaded, open it without a device_map" if offloaded else ""
        raise ArgumentError(
            f"expected a model with its weights, got a {type(model).__name__} on the meta device"
            f"{why}"
        )


def check_seed(seed: int) -> None:
    """Raise ArgumentError unless every generator takes `seed`."""
    if not 0 <= seed < SEEDS:
        raise ArgumentError(f"expected a seed from 0 to {SEEDS - 1}, got {seed}")


def _read(name: str, text: str, hint: Any) -> Any:
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind, reader in _READERS.items():
        if kind in hints:
            try:
                return fit(name, reader(text), kind)
            except (KeyError, ValueError):
                continue
    return fit(name, text, hint)


_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
    int: int,
    float: float,
    type(None): lambda text: {"none": None}[text.lower()],
}


class _Unfit(Exception):
    pass


def _fit(value: Any, hint: Any) -> Any:
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if hint in _PARSERS:
        return _PARSERS[hint](value)
    origin = get_origin(hint)
    if origin is tuple and get_args(hint)[-1] is not ...:
        return _fixed(value, get_args(hint))
    kind = types.NoneType if hint is None else origin or hint
    if kind in (Iterable, Sequence) and isinstance(value, (str, bytes, Mapping, Tensor, nn.Module)):
        raise _Unfit
    if not isinstance(value, kind):
        raise _Unfit
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _Unfit
    return bool(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _Unfit
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _Unfit
    if not math.isfinite(value):
        raise _Unfit
    return (
        value if isinstance(value, (int, float)) and type(value) in (int, float) else float(value)
    )


def _path(value: Any) -> Any:
    if not isinstance(value, os.PathLike):
        raise _Unfit
    return value


def _device(value: Any) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        raise _Unfit from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit
    return value


def _fixed(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of so many; a list will do."""
    if not isinstance(value, (tuple, list)) or len(value) != len(kinds):
        raise _Unfit
    return tuple(_fit(item, kind) for item, kind in zip(value, kinds, strict=True))


_PARSERS: dict[Any, Callable[[Any], Any]] = {
    bool: _truth,
    int: _whole,
    float: _number,
    str: _text,
    Path: _path,
    torch.device: _device,
}
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    Path: "a path",
    torch.device: "a device",
    type(None): "None",
    Callable: "callable",
    Iterable: "an iterable",
    Mapping: "a mapping",
    Sequence: "a sequence",
    Tensor: "a tensor",
    nn.Module: "a torch module",
}


def _either(hints: Sequence[Any]) -> str:
    return " or ".join(dict.fromkeys(map(_words, hints)))


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple and get_args(hint)[-1] is not ...:
        return f"{len(get_args(hint))} of {_either(get_args(hint))}"
    kind = get_origin(hint) or hint
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _is_plain_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "meta" and value.numel() <= 1


@cache
def _hints(annotated: Any) -> dict[str, Any]:
    if isinstance(annotated, type) and not hasattr(annotated, "__dataclass_fields__"):
        annotated = getattr(annotated, "__init__")  # noqa: B009 - mypy fears a subclass's
    return get_type_hints(annotated)
