"""What a converted model does with the methods it inherits: those that would no longer do what they
say are made right here, or refused in a sentence."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, wraps
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs import interface
from secateurs.errors import ConvertedError
from secateurs.modules import Layer, Mixed

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


class Converted(Mixed):
    """What every converted model is besides its stock class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # `type(converted)(config)` and `.from_pretrained` mean the stock class: only `convert` and
        # `load` convert.
        return cls.stock(*args, **kwargs)

    @property
    def secateurs(self) -> Any:
        """The record of the conversion. It is the base model's, which holds the layers."""
        base = self.base_model  # type: ignore[attr-defined]
        record = base._conversion
        if base is self:
            return record
        path = f"{self.base_model_prefix}.{record.sites.path}"  # type: ignore[attr-defined]
        return replace(record, sites=replace(record.sites, path=path))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write what `secateurs.save` writes, always as one file of safetensors.

        Raises ConvertedError for what that cannot be: other weights, a variant, pickled weights.
        """
        from secateurs.checkpoint import save

        token = options.pop("token", None)
        upload = {name: options.pop(name) for name in _UPLOAD & options.keys()}
        wanted = {"safe_serialization": True, "variant": None, "distributed_checkpoint": False}
        for name, value in options.items():
            if name not in _WITHOUT_EFFECT and value != wanted.get(name, value is None):
                raise ConvertedError(
                    f"save_pretrained of a converted model cannot honour {name}={value!r}: it "
                    "writes one folder for secateurs.load"
                )
        if state_dict is not None and not _same_tensors(state_dict, self.state_dict()):  # type: ignore[attr-defined]
            raise ConvertedError(
                "save_pretrained of a converted model writes the tensors it has, and state_dict "
                "holds others"
            )
        if not is_main_process:
            return
        save(self, save_directory)  # type: ignore[arg-type]
        if push_to_hub:
            upload.setdefault("repo_id", Path(save_directory).name)
            self.push_to_hub(token=token, **upload)  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode, the only one there is. Raises ConvertedError for any other."""
        if mode:
            raise ConvertedError(f"a converted model is for inference: {_TRAINING}")
        return super().train(False)  # type: ignore[misc]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count parameters, of the layers those weights and biases that the plan keeps."""
        count = super().num_parameters(only_trainable, exclude_embeddings)  # type: ignore[misc]
        if only_trainable:
            return count
        record = self.secateurs
        weights = sum(
            record.sites.keep(record.plan, i).parameters() for i in range(len(record.sites.layers))
        )
        biases = sum(b.numel() for name, b in self._packed() if name.rpartition(".")[2] == "bias")
        return count + weights + biases

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all tensors; without the buffers, still with those that hold the layers."""
        size = super().get_memory_footprint(return_buffers)  # type: ignore[misc]
        if return_buffers:
            return size
        return size + sum(held.nelement() * held.element_size() for _, held in self._packed())

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Leave tied weights tied, and others apart, as they were in the dense model."""

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Keep our attention. Raises ConvertedError for any other."""
        if attn_implementation != interface.NAME:
            raise ConvertedError(
                f"a converted model computes its own attention ({interface.NAME!r}), got "
                f"{attn_implementation!r}: {_EXPORT}"
            )
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]

    def set_use_kernels(self, use_kernels: bool, *_: Any, **__: Any) -> None:
        """Keep our kernels. Raises ConvertedError if others are asked for."""
        if use_kernels:
            raise ConvertedError(f"a converted model runs on its own kernels: {_EXPORT}")

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict()` of this model gave.

        Raises ConvertedError for other names (the dense model's, say), whatever `strict` says, for
        other whole numbers (they say which blocks are kept, and kernels trust them), and for
        `assign`, which would put tensors in place of packed ones.
        """
        own = self.state_dict()  # type: ignore[attr-defined]
        others = own.keys() ^ state_dict.keys() or {
            name
            for name, held in own.items()
            if not held.is_floating_point() and not torch.equal(held, state_dict[name].to(held))
        }
        if others or assign:
            came = "assign=True" if assign else f"another {min(others)}"
            raise ConvertedError(
                f"expected values for the packed tensors of this converted model, got {came}: "
                f"{_DENSE}"
            )
        return super().load_state_dict(state_dict, True)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Cast or move, then decide anew which kernels run what, in which form."""
        from secateurs.remake import remake

        before, ties = self._placed(), _ties(self)
        super()._apply(fn, recurse)  # type: ignore[misc]
        for module, name, first_module, first in ties:
            module._parameters[name] = first_module._parameters[first]
        after = self._placed()
        # Of a model with a head the base model has done it by now. Without data there is nothing to
        # pack, and nothing that could run.
        if self.base_model is self and after != before and ("meta" not in str(after)):  # type: ignore[attr-defined]
            remake(self)  # type: ignore[arg-type]
        return self

    def _packed(self) -> Iterator[tuple[str, Tensor]]:
        layers = (m for m in self.modules() if isinstance(m, Layer))  # type: ignore[attr-defined]
        buffers = (layer.named_buffers() for layer in layers)
        for i, held in enumerate(buffers):
            yield from ((f"{i}.{name}", tensor) for name, tensor in held)

    def _placed(self) -> set[tuple[torch.device, torch.dtype]]:
        """Where the layers are, and in which dtypes."""
        layers = [m for m in self.modules() if isinstance(m, Layer)]  # type: ignore[attr-defined]
        held = chain.from_iterable((*layer.buffers(), *layer.parameters()) for layer in layers)
        return {(tensor.device, tensor.dtype) for tensor in held if tensor.is_floating_point()}


def adopt(model: nn.Module, conversion: Any) -> None:
    """Give a model whose layers were replaced the class of converted ones, and its record; the same
    to the base model in it."""
    base = getattr(model, "base_model", model)
    for part in (model, base):
        part.__class__ = converted_class(type(part))
    path = conversion.sites.family.layers
    base._conversion = replace(conversion, sites=replace(conversion.sites, path=path))


def stock_class(model: nn.Module) -> type[nn.Module]:
    """The class a model, or a layer, has where it is not converted."""
    return model.stock if isinstance(model, Mixed) else type(model)


@cache
def converted_class(stock: type[nn.Module]) -> type[nn.Module]:
    """The class of converted models of class `stock`, by the same name: pipelines, and the registry
    of what to record of a forward pass, look at names."""
    if issubclass(stock, Converted):
        return stock
    interface.register()
    about = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "stock": stock,
        "maker": converted_class,
        "forward": _without_probabilities(stock.forward),
    }
    refusals = {name: _refusal(name) for name in REFUSED if hasattr(stock, name)}
    return type(stock.__name__, (Converted, stock), {**about, **refusals})


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConvertedError(
            f"{name} of a converted model would not do what it says: {REFUSED[name]}"
        )

    return refuse


def _without_probabilities(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` that refuses to return attention probabilities, which no kernel of ours holds."""
    names = list(inspect.signature(forward).parameters)
    place = names.index("output_attentions") - 1 if "output_attentions" in names else len(names)

    @wraps(forward)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = args[place] if len(args) > place else kwargs.get("output_attentions")
        if asked or (asked is None and self.config.output_attentions):
            raise ConvertedError(
                "expected output_attentions=False: the kernels of a converted model never hold the "
                f"probabilities; {_EXPORT}"
            )
        return forward(self, *args, **kwargs)

    return refusing


def _ties(model: Any) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """Each place of a parameter that is also held in an earlier one, and the earlier one."""
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
