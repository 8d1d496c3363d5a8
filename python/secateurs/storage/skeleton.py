"""Models without data, as their class makes them of a config: what a saved model is rebuilt from,
and what tells before it is saved whether that can be done."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.checks import dtype_name
from secateurs.conversion.inherited import stock_class
from secateurs.errors import CheckpointError, FormatError

# Numbers in modules that a user, or a long input, changes without the config knowing: remembered.
SETTINGS = frozenset({"eps", "variance_epsilon", "max_seq_len_cached", "original_max_seq_len"})
# Modules that compute nothing in inference.
_IDLE = (nn.Dropout, nn.Identity)


def skeleton(cls: type[nn.Module], config: Any, arguments: Mapping[str, bool]) -> nn.Module:
    """The model that `cls` makes of `config` and `arguments`, every tensor on the meta device."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return cls(copy.deepcopy(config), **arguments).eval()


def arguments_for(
    cls: type[nn.Module], config: Any, names: Iterable[str], layers: Sequence[str]
) -> dict[str, bool]:
    """The yes-or-no arguments of its constructor (`add_pooling_layer`, `use_mask_token`) with which
    `cls` makes tensors of these names outside `layers`; none where no choice of them does."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    flags = {p.name: not p.default for p in parameters if isinstance(p.default, bool)}
    wanted = set(outside(layers, names))
    for size in range(len(flags) + 1):
        for flipped in itertools.combinations(flags, size):
            chosen = {name: flags[name] for name in flipped}
            made = named_tensors(skeleton(cls, config, chosen))
            if set(outside(layers, made)) == wanted:
                return chosen
    return {}


def outside(layers: Sequence[str], names: Iterable[str]) -> Iterator[str]:
    """Those `names` of tensors or modules that do not lie in any of `layers`."""
    within = tuple(f"{path}." for path in layers)
    return (name for name in names if not f"{name}.".startswith(within))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor a model holds: parameters, buffers, also those no state dict has, and plain
    attributes; tied ones under each of their names."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers, vars(module)):
            tensors = {name: t for name, t in held.items() if isinstance(t, Tensor)}
            found |= {f"{path}.{name}" if path else name: t for name, t in tensors.items()}
    return found


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each tied tensor, the earlier name of the same tensor."""
    first: dict[Any, str] = {}
    tied = {}
    for name, tensor in tensors.items():
        known: Any = id(tensor)
        if tensor.device.type != "meta" and tensor.numel():
            known = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        earlier = first.setdefault(known, name)
        if earlier != name:
            tied[name] = earlier
    return tied


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the tensor of that name by `tensor`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        )
    elif leaf in module._buffers:
        module._buffers[leaf] = tensor
    else:
        vars(module)[leaf] = tensor


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    tied: Mapping[str, str],
    layers: Sequence[str],
    dtype_of: Callable[[str], torch.dtype],
) -> None:
    """Give a skeleton its data outside `layers`.

    Args:
        tensors: by name; all of them, and no more.
        tied: names that share the tensor of another name.
        dtype_of: the dtype of a floating tensor, by name.

    Raises FormatError for what is missing, unknown, of another shape or dtype, or NaN.
    """
    made = named_tensors(model)
    wanted = set(outside(layers, made))
    for name in sorted(wanted ^ (tensors.keys() | tied.keys())):
        makes = f"{type(model).__name__} makes {'' if name in wanted else 'no tensor '}{name}"
        raise FormatError(f"{makes} of its config{', but it is missing' if name in wanted else ''}")
    for name, tensor in tensors.items():
        check_like(name, tensor, made[name], dtype_of(name))
        if tensor.is_floating_point() and tensor.numel() and bool(tensor.aminmax()[0].isnan()):
            raise FormatError(f"expected numbers, but {name} holds NaN")
        place(model, name, tensor)
    placed = named_tensors(model)
    for name, first in tied.items():
        if first not in tensors or made[first].shape != made[name].shape:
            raise FormatError(f"expected {name} tied to another tensor, got {first!r}")
        place(model, name, placed[first])


def check_like(name: str, tensor: Tensor, made: Tensor, floating: torch.dtype) -> None:
    """Raise FormatError unless `tensor` has the shape of `made`, and its dtype, which is
    `floating` where it is a floating one."""
    dtype = floating if made.is_floating_point() else made.dtype
    if tensor.shape != made.shape or tensor.dtype != dtype:
        raise FormatError(
            f"expected {name} as {dtype_name(dtype)} {tuple(made.shape)}, "
            f"got {dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
        )


def changed_settings(
    model: nn.Module, made: nn.Module, layers: Sequence[str] = (), path: str = ""
) -> dict[str, float]:
    """The numbers of SETTINGS that differ from those of a skeleton, by name.

    Args:
        layers: what lies in it is not compared.
        path: of both in the whole model.

    Raises CheckpointError where anything else differs that inference may depend on: the type of a
    module, or a number, text or function in one.
    """
    changed: dict[str, float] = {}
    mine, theirs = (dict(m.named_modules(remove_duplicate=False)) for m in (model, made))
    names = sorted(mine.keys() | theirs.keys())
    for name in outside(layers, names):
        ours, stock = mine.get(name), theirs.get(name)
        where = f"{path}.{name}".strip(".")
        if (ours is None or isinstance(ours, _IDLE)) and (
            stock is None or isinstance(stock, _IDLE)
        ):
            continue
        if ours is None or stock is None or stock_class(ours) is not stock_class(stock):
            has, makes = (_kind(module) for module in (ours, stock))
            raise CheckpointError(
                f"expected the modules that {type(made).__name__} makes of its config, but "
                f"{where or 'the model'} is {has}, not {makes}"
            )
        for key in sorted(vars(ours).keys() & vars(stock).keys()):
            has, makes = vars(ours)[key], vars(stock)[key]
            if not _tells(key, has, makes) or has == makes:
                continue
            if key not in SETTINGS or not isinstance(has, (int, float)):
                raise CheckpointError(
                    f"expected what {type(made).__name__} makes of its config, but "
                    f"{f'{where}.{key}'.strip('.')} is {has!r}, not {makes!r}"
                )
            changed[f"{where}.{key}".strip(".")] = has
    return changed


def change_settings(model: nn.Module, settings: Mapping[str, float]) -> None:
    """Set numbers of SETTINGS by name. Raises FormatError for others."""
    for name, value in settings.items():
        path, _, key = name.rpartition(".")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if key not in SETTINGS or not number or not (math.isfinite(value) and value >= 0):
            raise FormatError(f"expected the number of a setting, got {name!r}: {value!r}")
        module = model.get_submodule(path)
        if not hasattr(module, key):
            raise FormatError(f"expected the setting of a module, got {name!r}")
        setattr(module, key, value)


def _tells(key: str, *values: Any) -> bool:
    """Whether an attribute of a module changes what it computes in inference and is the same in all
    layers."""
    if key.startswith("_") or "dropout" in key or key in ("training", "layer_idx"):
        return False
    plain = (bool, int, float, str, FunctionType, type(None))
    return key != "gradient_checkpointing" and all(isinstance(value, plain) for value in values)


def _kind(module: nn.Module | None) -> str:
    return "missing" if module is None else f"a {stock_class(module).__name__}"
