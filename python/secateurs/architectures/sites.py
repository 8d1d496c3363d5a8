"""The sites of one model: every place where it can lose something."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep, LayerShape
from secateurs.architectures.linears import LinearView, check_linear, module_at, view
from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.refused import why_unknown
from secateurs.architectures.schema import Architecture
from secateurs.checks import door
from secateurs.errors import FamilyError
from secateurs.plan import AttentionRuleMask, BlockMask, PatternMask, Site, SparsityPlan
from secateurs.plan.masks import KeepMask


@dataclass(frozen=True)
class Sites:
    """Everything a model of a known family can lose.

    Site names: `layers.I.heads`, `layers.I.attention_rules` (what each head sees),
    `layers.I.neurons`, `layers.I.attention`, `layers.I.ffn`, `layers.I.layer` (both sub-layers),
    and one per linear: `layers.I.query`, `.key`, `.value`, `.output`, `.gate`, `.up`, `.down`.
    """

    architecture: Architecture
    path: str  # of the ModuleList of layers, from the model given
    layers: tuple[LayerShape, ...]

    def __iter__(self) -> Iterator[Site]:
        for i, shape in enumerate(self.layers):
            yield Site(f"layers.{i}.heads", "heads", i, (shape.heads,))
            yield Site(f"layers.{i}.attention_rules", "attention_rules", i, (shape.heads,))
            yield Site(f"layers.{i}.neurons", "neurons", i, (shape.neurons,))
            for module in ("attention", "ffn", "layer"):
                yield Site(f"layers.{i}.{module}", "module", i, ())
            for role, size in shape.linears().items():
                yield Site(f"layers.{i}.{role}", "linear", i, size)

    def of_kind(self, kind: str) -> list[Site]:
        return [site for site in self if site.kind == kind]

    def fingerprint(self) -> dict[str, Any]:
        """What a plan remembers of the model it was made for."""
        sizes = [[s.heads, s.kv_heads, s.head_dim, s.neurons] for s in self.layers]
        hidden = self.layers[0].hidden if self.layers else 0
        return {"model_type": self.architecture.model_type, "hidden_size": hidden, "layers": sizes}

    def layer_path(self, index: int) -> str:
        return f"{self.path}.{index}"

    def layer(self, model: nn.Module, index: int) -> nn.Module:
        return model.get_submodule(self.layer_path(index))

    def linear(self, model: nn.Module, index: int, role: str) -> LinearView:
        return view(self.layer(model, index), self.architecture.linear(role))

    def keep(self, plan: SparsityPlan, index: int) -> LayerKeep:
        """What `plan` leaves of layer `index`."""
        masks, shape = plan.masks, self.layers[index]

        def mask(part: str, size: int | None = None) -> Tensor:
            found = masks.get(f"layers.{index}.{part}")
            if isinstance(found, KeepMask):
                return found.keep
            return torch.ones(() if size is None else size, dtype=torch.bool)

        whole = bool(mask("layer"))
        attention, ffn = whole and bool(mask("attention")), whole and bool(mask("ffn"))
        rules = masks.get(f"layers.{index}.attention_rules")
        weights = {
            role: found
            for role in shape.linears()
            if (found := masks.get(f"layers.{index}.{role}")) is not None
        }
        return LayerKeep(
            shape,
            attention,
            ffn,
            mask("heads", shape.heads) & attention,
            mask("neurons", shape.neurons) & ffn,
            {role: m for role, m in weights.items() if isinstance(m, BlockMask)},
            {role: m for role, m in weights.items() if isinstance(m, PatternMask)},
            {
                role: levels
                for role in shape.linears()
                if (levels := plan.levels.get(f"layers.{index}.{role}")) is not None
            },
            tuple(rules.rules) if isinstance(rules, AttentionRuleMask) else None,
        )

    def density(self, plan: SparsityPlan, seq_len: int = 128) -> dict[str, float]:
        """Fraction kept, counted in heads, neurons, sub-layers, weights of the layers' linears, and
        MACs at `seq_len` tokens."""
        kept = [self.keep(plan, i) for i in range(len(self.layers))]
        full = [self.keep(SparsityPlan(), i) for i in range(len(self.layers))]
        count = {
            "heads": lambda k: int(k.heads.sum()),
            "neurons": lambda k: int(k.neurons.sum()),
            "modules": lambda k: int(k.attention) + int(k.ffn),
            "parameters": lambda k: k.parameters(),
            "macs": lambda k: k.macs(seq_len),
        }
        return {
            name: sum(map(units, kept)) / max(1, sum(map(units, full)))
            for name, units in count.items()
        }


@door
def find_sites(model: nn.Module) -> Sites:
    """The sites of a transformers model.

    Raises FamilyError for an architecture without a record, a decoder with cross-attention, a
    model whose layers are not stock (already converted, or patched), and one without layers or
    with an empty one.
    """
    config = getattr(model, "config", None)
    base = getattr(model, "base_model", model)
    if getattr(config, "is_encoder_decoder", False) and hasattr(base, "decoder"):
        raise FamilyError(
            f"expected an encoder or a decoder, got {type(model).__name__}, which has both"
        )
    known = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if known is None or config is None:
        raise why_unknown(model, chain.from_iterable(ARCHITECTURES.values()))
    name = next(name for name, module in model.named_modules() if module is base)
    layers, architecture = _layers_of(base, [a for a in known if a.fits(config)] or known)
    if not architecture.causal and getattr(config, "is_decoder", False):
        raise FamilyError(
            f"expected {architecture.model_type} as an encoder, got config.is_decoder=True"
        )
    path = f"{name}.{architecture.layers}" if name else architecture.layers
    shapes = tuple(_layer_shape(architecture, config, layer) for layer in layers)
    _check_unshared(architecture, layers)
    if not shapes:
        raise FamilyError(f"expected layers at {path}, got an empty list")
    for i, shape in enumerate(shapes):
        if not shape.neurons:
            raise FamilyError(f"expected neurons in every layer, got none in layer {i}")
    return Sites(architecture, path, shapes)


def _layers_of(
    base: nn.Module, known: Sequence[Architecture]
) -> tuple[Sequence[nn.Module], Architecture]:
    """The layers of a base model, and the first of the architectures it may have whose linears the
    layers hold."""
    layers = module_at(base, known[0].layers)
    if not isinstance(layers, nn.ModuleList):
        raise FamilyError(
            f"expected layers at {known[0].layers}, but {type(base).__name__} has none"
        )
    fitting = (
        architecture
        for architecture in known
        if layers and all(module_at(layers[0], linear.path) for linear in architecture.linears)
    )
    return list(layers), next(fitting, known[0])


def _layer_shape(architecture: Architecture, config: Any, layer: nn.Module) -> LayerShape:
    for linear in architecture.linears:
        check_linear(layer, linear)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = LayerShape(
        heads=heads,
        kv_heads=getattr(config, architecture.kv_heads),
        head_dim=head_dim,
        neurons=view(layer, architecture.ffn.last).weight.shape[1],
        hidden=view(layer, architecture.attention.last).weight.shape[0],
        architecture=architecture,
    )
    for role, size in shape.linears().items():
        weight = view(layer, architecture.linear(role)).weight
        if tuple(weight.shape) != size:
            raise FamilyError(
                f"expected {role} of shape {size} from the config, got {tuple(weight.shape)}"
            )
    return shape


def _check_unshared(architecture: Architecture, layers: Iterable[nn.Module]) -> None:
    """Raise FamilyError if two modules hold one parameter: they could not lose different parts."""
    owners: dict[int, tuple[str, str]] = {}
    for index, layer in enumerate(layers):
        for linear in architecture.linears:
            name, module = f"layers.{index}.{linear.role}", f"{index}.{linear.path}"
            for parameter in layer.get_submodule(linear.path)._parameters.values():
                if parameter is None:
                    continue
                owner, first = owners.setdefault(id(parameter), (module, name))
                if owner != module:
                    raise FamilyError(
                        f"expected linears with parameters of their own, but {name} shares one "
                        f"with {first}"
                    )
