"""The sites of one model: every place where it can lose something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep, LayerShape
from secateurs.architectures.linears import LinearView, check_linear, module_at, view
from secateurs.architectures.records import ARCHITECTURES
from secateurs.architectures.refused import why_unknown
from secateurs.architectures.schema import Architecture, SubLayer
from secateurs.checks import door
from secateurs.errors import FamilyError
from secateurs.plan import AttentionRuleMask, BlockMask, PatternMask, Site, SparsityPlan
from secateurs.plan.masks import KeepMask


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, one behind the other.

    Attributes:
        name: what the names of its sites begin with; nothing where a model has no other stack.
        path: of the ModuleList of layers, from the model given.
        first: the number of its first layer among all layers of the model.
    """

    name: str
    path: str
    architecture: Architecture
    layers: tuple[LayerShape, ...]
    first: int = 0


@dataclass(frozen=True)
class Sites:
    """Everything a model of a known family can lose.

    Site names: `layers.I.heads`, `layers.I.attention_rules` (what each head sees),
    `layers.I.neurons`, `layers.I.attention`, `layers.I.ffn`, `layers.I.layer` (all sub-layers),
    and one per linear: `layers.I.query`, `.key`, `.value`, `.output`, `.gate`, `.up`, `.down`.

    In a model with an encoder and a decoder they begin with the stack, `encoder.layers.I.heads`,
    and a decoder's layer also has `.cross_attention`, `.cross_attention.heads` and
    `.cross_attention.query`, ...; no head has rules there. Where layers are counted, those of the
    encoder come first.
    """

    stacks: tuple[Stack, ...]

    def __iter__(self) -> Iterator[Site]:
        for i, shape in enumerate(self.layers):
            for part, kind, size in self._parts(shape):
                yield Site(self.name(i, part), kind, i, size, part)

    def _parts(self, shape: LayerShape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name in its layer, kind and shape of each site of one layer."""
        for units, count in shape.units().items():
            yield units, "neurons" if units == "neurons" else "heads", (count,)
            if units == "heads" and len(self.stacks) == 1:
                yield "attention_rules", "attention_rules", (count,)
        for sublayer in shape.architecture.sublayers:
            yield sublayer.name, "module", ()
        yield "layer", "module", ()
        for role, size in shape.linears().items():
            yield role, "linear", size

    @cached_property
    def layers(self) -> tuple[LayerShape, ...]:
        """Of all stacks, one behind the other."""
        return tuple(shape for stack in self.stacks for shape in stack.layers)

    @property
    def architecture(self) -> Architecture:
        """The record of the only stack, or of the encoder."""
        return self.stacks[0].architecture

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the ModuleList of each stack, from the model given."""
        return tuple(stack.path for stack in self.stacks)

    def of_kind(self, kind: str) -> list[Site]:
        return [site for site in self if site.kind == kind]

    @cached_property
    def by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self}

    def name(self, index: int, part: str) -> str:
        """The name of a site: of what is called `part` in layer `index`."""
        stack, place = self.place(index)
        return ".".join(filter(None, (stack.name, "layers", str(place), part)))

    def place(self, index: int) -> tuple[Stack, int]:
        """The stack of a layer, and its number there."""
        stack = next(stack for stack in reversed(self.stacks) if stack.first <= index)
        return stack, index - stack.first

    def sublayer(self, site: Site) -> SubLayer:
        """The sub-layer that a site of units, or of a whole sub-layer, is in."""
        sublayers = self.layers[site.layer].architecture.sublayers
        return next(s for s in sublayers if site.part in (s.name, s.units))

    def of_one_stack(self, who: str) -> Sites:
        """These sites. Raises FamilyError if the model has several stacks, which `who` cannot
        take."""
        if len(self.stacks) > 1:
            raise FamilyError(
                f"expected a model of one stack of layers, which is what {who} can walk through, "
                f"got {self.architecture.model_type} with an encoder and a decoder"
            )
        return self

    def within(self, base: str) -> Sites:
        """The same sites of a model that holds the base model by that name; of the base model
        itself, where that is nothing."""
        paths = [".".join(filter(None, (base, s.architecture.layers))) for s in self.stacks]
        return Sites(tuple(replace(s, path=p) for s, p in zip(self.stacks, paths, strict=True)))

    def fingerprint(self) -> dict[str, Any]:
        """What a plan remembers of the model it was made for."""
        hidden = self.layers[0].hidden if self.layers else 0
        return {
            "model_type": self.architecture.model_type,
            "hidden_size": hidden,
            "layers": [shape.sizes for shape in self.layers],
        }

    def layer_path(self, index: int) -> str:
        stack, place = self.place(index)
        return f"{stack.path}.{place}"

    def layer(self, model: nn.Module, index: int) -> nn.Module:
        return model.get_submodule(self.layer_path(index))

    def linear(self, model: nn.Module, index: int, role: str) -> LinearView:
        return view(self.layer(model, index), self.layers[index].architecture.linear(role))

    def keep(self, plan: SparsityPlan, index: int) -> LayerKeep:
        """What `plan` leaves of layer `index`."""
        masks, shape = plan.masks, self.layers[index]

        def mask(part: str, size: int | None = None) -> Tensor:
            found = masks.get(self.name(index, part))
            if isinstance(found, KeepMask):
                return found.keep
            return torch.ones(() if size is None else size, dtype=torch.bool)

        sublayers, whole = shape.architecture.sublayers, bool(mask("layer"))
        stays = {sublayer.name: whole and bool(mask(sublayer.name)) for sublayer in sublayers}
        counts = shape.units()
        rules = masks.get(self.name(index, "attention_rules"))
        weights = {
            role: found
            for role in shape.linears()
            if (found := masks.get(self.name(index, role))) is not None
        }
        return LayerKeep(
            shape,
            stays,
            {s.units: mask(s.units, counts[s.units]) & stays[s.name] for s in sublayers},
            {role: m for role, m in weights.items() if isinstance(m, BlockMask)},
            {role: m for role, m in weights.items() if isinstance(m, PatternMask)},
            {
                role: levels
                for role in shape.linears()
                if (levels := plan.levels.get(self.name(index, role))) is not None
            },
            tuple(rules.rules) if isinstance(rules, AttentionRuleMask) else None,
        )

    def density(self, plan: SparsityPlan, seq_len: int = 128) -> dict[str, float]:
        """Fraction kept, counted in heads, neurons, sub-layers, weights of the layers' linears, and
        MACs at `seq_len` tokens."""
        kept = [self.keep(plan, i) for i in range(len(self.layers))]
        full = [self.keep(SparsityPlan(), i) for i in range(len(self.layers))]
        count = {
            "heads": lambda k: k.all_heads,
            "neurons": lambda k: int(k.neurons.sum()),
            "modules": lambda k: sum(k.stays.values()),
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

    Raises FamilyError for an architecture without a record, a decoder with cross-attention that has
    no encoder beside it, a model whose layers are not stock (already converted, or patched), and
    one without layers or with an empty one.
    """
    config = getattr(model, "config", None)
    base = getattr(model, "base_model", model)
    known = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if known is None or config is None:
        raise why_unknown(model, chain.from_iterable(ARCHITECTURES.values()))
    name = next(name for name, module in model.named_modules() if module is base)
    layers, architecture = _layers_of(base, _fitting(known, config))
    both = getattr(config, "is_encoder_decoder", False) and hasattr(base, "decoder")
    if both and architecture.decoder is None:
        raise FamilyError(
            f"expected an encoder or a decoder, got {type(model).__name__}, which has both"
        )
    if not (both or architecture.causal) and getattr(config, "is_decoder", False):
        raise FamilyError(
            f"expected {architecture.model_type} as an encoder, got config.is_decoder=True"
        )
    found = [("", architecture, layers)]
    if both and architecture.decoder is not None:
        others, decoder = _layers_of(base, [architecture.decoder])
        found = [("encoder", architecture, layers), ("decoder", decoder, others)]
    stacks: list[Stack] = []
    for stack, record, held in found:
        path = f"{name}.{record.layers}" if name else record.layers
        shapes = tuple(_layer_shape(record, config, layer) for layer in held)
        if not shapes:
            raise FamilyError(f"expected layers at {path}, got an empty list")
        first = sum(len(earlier.layers) for earlier in stacks)
        stacks.append(Stack(stack, path, record, shapes, first))
    sites = Sites(tuple(stacks))
    for index, shape in enumerate(sites.layers):
        if not shape.neurons:
            raise FamilyError(f"expected neurons in every layer, got none in layer {index}")
    _check_unshared(sites, model)
    return sites


def _fitting(known: Sequence[Architecture], config: Any) -> list[Architecture]:
    """The records by which models of this config are built. Raises FamilyError if there are
    none."""
    fitting = [architecture for architecture in known if architecture.fits(config)]
    if not fitting:
        (attribute, wanted), *_ = [a.when for a in known if a.when is not None]
        raise FamilyError(
            f"expected {known[0].model_type} with config.{attribute}={wanted}, got "
            f"{getattr(config, attribute, None)}"
        )
    return fitting


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
    heads = getattr(config, architecture.heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = LayerShape(
        heads=heads,
        kv_heads=getattr(config, architecture.kv_heads),
        head_dim=head_dim,
        neurons=view(layer, architecture.ffn.last).weight.shape[1],
        hidden=view(layer, architecture.attention.last).weight.shape[0],
        architecture=architecture,
        cross_heads=heads if architecture.cross else 0,
    )
    for role, size in shape.linears().items():
        weight = view(layer, architecture.linear(role)).weight
        if tuple(weight.shape) != size:
            raise FamilyError(
                f"expected {role} of shape {size} from the config, got {tuple(weight.shape)}"
            )
    return shape


def _check_unshared(sites: Sites, model: nn.Module) -> None:
    """Raise FamilyError if two modules hold one parameter: they could not lose different parts."""
    owners: dict[int, tuple[str, str]] = {}
    for index, shape in enumerate(sites.layers):
        layer = sites.layer(model, index)
        for linear in shape.architecture.linears:
            name, module = sites.name(index, linear.role), f"{index}.{linear.path}"
            for parameter in layer.get_submodule(linear.path)._parameters.values():
                if parameter is None:
                    continue
                owner, first = owners.setdefault(id(parameter), (module, name))
                if owner != module:
                    raise FamilyError(
                        f"expected linears with parameters of their own, but {name} shares one "
                        f"with {first}"
                    )
