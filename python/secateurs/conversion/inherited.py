"""Methods that a converted model inherits and that would no longer do what they say: each is
replaced by a right one here, or refused in a sentence."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from secateurs.conversion import transformers_attention
from secateurs.conversion.modules import Layer, Mixed
from secateurs.errors import ConvertedError

_TRAINING = "its layers have no parameters to train: train the dense model, and convert it again"
_DENSE = "do that to the dense model, and convert it again"
_EXPORT = "secateurs.export_dense(model) gives the dense one"
# Methods of stock models that nothing can make right, and what to do instead.
REFUSED: dict[str, str] = {
    "activation_checkpointing_enable": _TRAINING,
    "add_adapter": _TRAINING,
    "dequantize": _EXPORT,
    "gradient_checkpointing_enable": _TRAINING,
    "init_weights": _DENSE,
    "initialize_weights": _DENSE,
    "kernelize": "it runs on its own kernels",
    "load_adapter": "merge the adapter into the dense model, and convert that",
    "post_init": _DENSE,
    "prune_heads": _DENSE,
    "register_for_auto_class": "secateurs.load never runs code from a folder; give it model_class=",
    "resize_token_embeddings": _DENSE,
    "save_distributed_checkpoint": "save_pretrained writes it as one file",
    "set_experts_implementation": "its layers have no experts",
    "to_empty": "a packed weight without its values is none; .to(device) moves them",
    "type": ".to(dtype=...) casts a model, and leaves whole numbers as they are",
}
# Options of `save_pretrained` that change nothing here: they say how stock models split files, or
# that safetensors are wanted.
_WITHOUT_EFFECT = frozenset({"max_shard_size", "save_original_format", "save_peft_format"})
_UPLOAD = frozenset(
    {"repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags"}
)


def save_pretrained(
    model: Any,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **options: Any,
) -> None:
    """Write what `secateurs.save` writes, always as one file of safetensors.

    Raises ConvertedError for what that cannot be: other weights, a variant, pickled weights.
    """
    from secateurs.storage.checkpoint import save

    token = options.pop("token", None)
    upload = {name: options.pop(name) for name in _UPLOAD & options.keys()}
    wanted = {"safe_serialization": True, "variant": None, "distributed_checkpoint": False}
    for name, value in options.items():
        if name not in _WITHOUT_EFFECT and value != wanted.get(name, value is None):
            raise ConvertedError(
                f"save_pretrained of a converted model cannot honour {name}={value!r}: it "
                "writes one folder for secateurs.load"
            )
    if state_dict is not None and not _same_tensors(state_dict, model.state_dict()):
        raise ConvertedError(
            "save_pretrained of a converted model writes the tensors it has, and state_dict "
            "holds others"
        )
    if not is_main_process:
        return
    save(model, save_directory)  # type: ignore[arg-type]
    if push_to_hub:
        upload.setdefault("repo_id", Path(save_directory).name)
        model.push_to_hub(token=token, **upload)


def push_to_hub(model: Any, repo_id: str, *, max_shard_size: Any = None, **options: Any) -> str:
    """Upload the folder that `secateurs.save` writes, with its model card."""
    from secateurs.storage.hub import push

    return push(model, repo_id, **options)


def train(model: Any, mode: bool = True) -> Any:
    """Stay in evaluation mode, the only one there is. Raises ConvertedError for any other."""
    if mode:
        raise ConvertedError(f"a converted model is for inference: {_TRAINING}")
    return type(model).train(model, False)


def num_parameters(
    model: Any, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """Count parameters. In the layers, count the weights and biases that the plan keeps."""
    count: int = type(model).num_parameters(model, only_trainable, exclude_embeddings)
    if only_trainable:
        return count
    record = record_of(model)
    weights: int = sum(
        record.sites.keep(record.plan, i).parameters() for i in range(len(record.sites.layers))
    )
    biases = sum(b.numel() for name, b in _packed(model) if name.rpartition(".")[2] == "bias")
    return count + weights + biases


def get_memory_footprint(model: Any, return_buffers: bool = True) -> int:
    """Return the bytes of all tensors. Buffers that hold the layers always count, even where other
    buffers are left out."""
    size: int = type(model).get_memory_footprint(model, return_buffers)
    if return_buffers:
        return size
    return size + sum(held.nelement() * held.element_size() for _, held in _packed(model))


def tie_weights(model: Any, *_: Any, **__: Any) -> None:
    """Do nothing: weights stay tied or apart as in the dense model."""


def set_attn_implementation(
    model: Any, attn_implementation: Any, *args: Any, **kwargs: Any
) -> None:
    """Keep our attention. Raises ConvertedError for any other."""
    if attn_implementation != transformers_attention.NAME:
        raise ConvertedError(
            f"a converted model computes its own attention ({transformers_attention.NAME!r}), got "
            f"{attn_implementation!r}: {_EXPORT}"
        )
    type(model).set_attn_implementation(model, attn_implementation, *args, **kwargs)


def set_use_kernels(model: Any, use_kernels: bool, *_: Any, **__: Any) -> None:
    """Keep our kernels. Raises ConvertedError if others are asked for."""
    if use_kernels:
        raise ConvertedError(f"a converted model runs on its own kernels: {_EXPORT}")


def load_state_dict(
    model: Any, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
) -> Any:
    """Load what `state_dict()` of this model gave.

    Raises ConvertedError for other names (the dense model's, say), whatever `strict` says, for
    other whole numbers (they say which blocks are kept, and kernels trust them), and for
    `assign`, which would put tensors in place of packed ones.
    """
    own = model.state_dict()
    others = own.keys() ^ state_dict.keys() or {
        name
        for name, held in own.items()
        if not held.is_floating_point() and not torch.equal(held, state_dict[name].to(held))
    }
    if others or assign:
        came = "assign=True" if assign else f"another {min(others)}"
        raise ConvertedError(
            f"expected values for the packed tensors of this converted model, got {came}: {_DENSE}"
        )
    return type(model).load_state_dict(model, state_dict, True)


def _apply(model: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Cast or move the model, then choose forms and kernels again."""
    from secateurs.conversion.remake import remake

    before, ties = _placed(model), _ties(model)
    type(model)._apply(model, fn, recurse)
    for module, name, first_module, first in ties:
        module._parameters[name] = first_module._parameters[first]
    after = _placed(model)
    # Of a model with a head the base model has done it by now. Without data there is nothing to
    # pack, and nothing that could run.
    if model.base_model is model and after != before and ("meta" not in str(after)):
        remake(model)
    return model


RIGHT: dict[str, Callable[..., Any]] = {
    method.__name__: method
    for method in (
        save_pretrained,
        push_to_hub,
        train,
        num_parameters,
        get_memory_footprint,
        tie_weights,
        set_attn_implementation,
        set_use_kernels,
        load_state_dict,
        _apply,
    )
}


class Method:
    """A method of one converted model, in place of the one its class has. So the model keeps its
    class, which pipelines and registries look up; copies and pickles take the method along."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name in REFUSED:
            raise ConvertedError(
                f"{self.name} of a converted model would not do what it says: {REFUSED[self.name]}"
            )
        return RIGHT[self.name](self.model, *args, **kwargs)


def adopt(model: nn.Module, conversion: Any) -> None:
    """Give a model with replaced layers the methods of converted models and its conversion record.
    Do the same to its base model."""
    base = getattr(model, "base_model", model)
    transformers_attention.register()
    for part in (model, base):
        if not isinstance(vars(part).get("train"), Method):
            names = [name for name in (*RIGHT, *REFUSED) if hasattr(type(part), name)]
            vars(part).update({name: Method(part, name) for name in names})
            part.register_forward_pre_hook(_WithoutProbabilities(part), with_kwargs=True)
    base._conversion = replace(conversion, sites=conversion.sites.within(""))


def disown(model: nn.Module) -> None:
    """Undo `adopt`, if it was called."""
    base = getattr(model, "base_model", model)
    vars(base).pop("_conversion", None)
    for part in (model, base):
        for name in (*RIGHT, *REFUSED):
            vars(part).pop(name, None)
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, _WithoutProbabilities):
                del part._forward_pre_hooks[key], part._forward_pre_hooks_with_kwargs[key]


def become(model: nn.Module, converted: nn.Module) -> None:
    """Make `model` what `converted` is, which has its class and is not used any more."""
    conversion = record_of(converted)
    disown(converted)
    vars(model).clear()
    vars(model).update(vars(converted))
    adopt(model, conversion)


def record_of(model: nn.Module) -> Any:
    """The record of a conversion, None for a model not converted. It is the base model's, which
    holds the layers."""
    base = getattr(model, "base_model", model)
    record = getattr(base, "__dict__", {}).get("_conversion")
    if record is None or base is model:
        return record
    return replace(record, sites=record.sites.within(model.base_model_prefix))


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The class that a layer has where it is not converted; of any other module, its class, which
    torch makes anew of each module whose weight is computed."""
    if isinstance(module, Mixed):
        return module.stock
    made: type[nn.Module] = type_before_parametrizations(module)
    return made


class _WithoutProbabilities:
    """A hook that refuses to return attention probabilities, which no kernel of ours holds."""

    def __init__(self, model: Any) -> None:
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        known = "output_attentions" in names
        self.place = names.index("output_attentions") if known else len(names)

    def __call__(self, model: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        asked = args[self.place] if len(args) > self.place else named.get("output_attentions")
        if asked or (asked is None and model.config.output_attentions):
            raise ConvertedError(
                "expected output_attentions=False: the kernels of a converted model never hold "
                f"the probabilities; {_EXPORT}"
            )


def _packed(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    layers = (module for module in model.modules() if isinstance(module, Layer))
    for i, layer in enumerate(layers):
        yield from ((f"{i}.{name}", tensor) for name, tensor in layer.named_buffers())


def _placed(model: nn.Module) -> set[tuple[torch.device, torch.dtype]]:
    """Where the layers are, and in which dtypes."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    held = chain.from_iterable((*layer.buffers(), *layer.parameters()) for layer in layers)
    return {(tensor.device, tensor.dtype) for tensor in held if tensor.is_floating_point()}


def _ties(model: Any) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """List every tied parameter: its module and name, then the module and name that came first."""
    first: dict[int, tuple[nn.Module, str]] = {}
    ties = []
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                earlier = first.setdefault(id(held), (module, name))
                if earlier != (module, name):
                    ties.append((module, name, *earlier))
    return ties


def _same_tensors(some: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return some.keys() == own.keys() and all(
        tensor is own[name] or (tensor.shape == own[name].shape and torch.equal(tensor, own[name]))
        for name, tensor in some.items()
    )
