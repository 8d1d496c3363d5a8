"""What a stock layer does beyond its weights, read from its modules, and what no record describes.

`convert` replaces a layer by what its architecture's record says. Whatever else the layer holds
(hooks, a patched forward, parameters of its own) would be lost, so it is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateurs.architectures.linears import module_at
from secateurs.architectures.schema import FUNCTIONS, Architecture, SubLayer
from secateurs.architectures.sites import Sites
from secateurs.errors import FamilyError

# transformers records hidden states by hooks that it installs on the layers when first asked.
_RECORDING = "transformers.utils.output_capturing"
_RECORDING_INSTALLED = "_output_capturing_hooks_installed"
_STOCK = ("transformers.", "torch.nn.")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Behaviour:
    """What a layer computes with its weights: whether a token sees later ones, the factor of its
    scores, whether it turns queries and keys where the model has a rotary embedding, at what it
    caps its scores, if at all, and the module that is its activation."""

    causal: bool
    scale: float
    rotary: bool
    softcap: float | None
    activation: nn.Module


def behaviour(architecture: Architecture, layer: nn.Module, head_dim: int) -> Behaviour:
    """Read the behaviour of a stock layer. Raises FamilyError if its activation is no module."""
    record = architecture.attention
    attention = layer.get_submodule(record.holder)
    holder, _, name = architecture.ffn.activation.rpartition(".")
    if name in FUNCTIONS:
        activation: Any = FUNCTIONS[name]()
    else:
        activation = getattr(layer.get_submodule(holder), name, None)
    if not isinstance(activation, nn.Module):
        raise FamilyError(
            f"expected a module as activation at {architecture.ffn.activation} of "
            f"{type(layer).__name__}, got {activation!r}"
        )
    scale = float(getattr(attention, "scaling", record.scores_scale or head_dim**-0.5))
    return Behaviour(
        causal=bool(getattr(attention, "is_causal", architecture.causal)),
        scale=scale * head_dim**-0.5 if record.queries_scaled else scale,
        rotary=bool(getattr(attention, "use_rope", True)),
        softcap=_softcap(attention),
        activation=activation,
    )


def outlet_of(layer: nn.Module, sublayer: SubLayer) -> nn.Module | Tensor | float | None:
    """What the output of a sub-layer goes through, or is multiplied by, before the residual is
    added; None for nothing. Raises FamilyError where the layer has no such thing."""
    if sublayer.outlet is None:
        return None
    holder, _, name = sublayer.outlet.rpartition(".")
    outlet: Any = getattr(module_at(layer, holder), name, None)
    if not isinstance(outlet, (nn.Module, Tensor, float, int)):
        raise FamilyError(
            f"expected a factor or a norm at {sublayer.outlet} of {type(layer).__name__}, got "
            f"{outlet!r}"
        )
    return outlet


def check_stock(model: nn.Module, sites: Sites) -> None:
    """Raise FamilyError, naming the module, unless the layers of `model` are transformers' own and
    hold nothing that the record of their architecture does not describe."""
    config: Any = model.config
    may_leave_out_caps = config._attn_implementation == "sdpa"
    for index in range(len(sites.layers)):
        layer, path = sites.layer(model, index), sites.layer_path(index)
        holder = sites.layers[index].architecture.attention.holder
        if may_leave_out_caps and _softcap(layer.get_submodule(holder)) is not None:
            raise FamilyError(
                "expected attn_implementation='eager' of a model that caps its scores, got 'sdpa', "
                "under which transformers leaves the cap out, or fails"
            )
        for name, module in layer.named_modules():
            why = _why_not_stock(module)
            if why is not None:
                raise FamilyError(
                    f"expected a stock module at {f'{path}.{name}'.rstrip('.')}, but {why}; "
                    "convert would lose it"
                )
        record = sites.layers[index].architecture
        for name, _ in (*layer.named_parameters(), *layer.named_buffers()):
            if not record.describes(name):
                raise FamilyError(
                    f"expected layers made of {', '.join(record.described)}, but {path} also has "
                    f"{name}; convert would lose it"
                )


def _softcap(attention: Any) -> float | None:
    """At what an attention module caps its scores, if at all."""
    cap: float | None = getattr(attention, "attn_logit_softcapping", None)
    return cap


def forget_recording(model: nn.Module) -> None:
    """Remove the hooks by which transformers records hidden states, so that it installs them anew
    on the layers of today."""
    for module in model.modules():
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if hook.__module__ == _RECORDING]:
            del hooks[key]
        module.__dict__.pop(_RECORDING_INSTALLED, None)


def _why_not_stock(module: nn.Module) -> str | None:
    kind = type(module)
    if not f"{kind.__module__}.".startswith(_STOCK):
        return f"its class {kind.__name__} is from {kind.__module__}"
    if hasattr(module, "_hf_hook"):
        return "accelerate placed it: accelerate.hooks.remove_hook_from_submodules takes that off"
    forward = module.__dict__.get("forward")
    if forward is not None and getattr(forward, "__func__", None) is not kind.forward:
        return "its forward was replaced"
    for hook in _hooks(module):
        if getattr(hook, "__module__", None) != _RECORDING:
            return f"it has the hook {getattr(hook, '__qualname__', type(hook).__name__)}"
    return None


def _hooks(module: nn.Module) -> Iterator[object]:
    for name in _HOOKS:
        yield from getattr(module, name).values()
