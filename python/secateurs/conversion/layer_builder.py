"""One converted layer, of compact weights and what its stock layer lends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers.activations import ACT2FN

from secateurs.architectures import schema
from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import module_at
from secateurs.architectures.sites import Sites
from secateurs.architectures.stock import behaviour, outlet_of
from secateurs.conversion.cost import FormPicker
from secateurs.conversion.forms import Stack, choices
from secateurs.conversion.modules import (
    Attention,
    Constant,
    CrossAttention,
    FeedForward,
    Layer,
    Norm,
    RelativeBias,
    Scale,
    Skip,
    layer_class,
)
from secateurs.conversion.modules.part import Linear
from secateurs.conversion.report import SiteReport
from secateurs.conversion.slicing import CompactLinear
from secateurs.plan.attention_rules import Rule

Part = TypeVar("Part", bound=nn.Module | None)

# The kernels' epilogue names, by the names transformers uses for activations.
_EPILOGUE = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
EPILOGUE = {type(ACT2FN[name]): epilogue for name, epilogue in _EPILOGUE.items()}


def fused_activation(activation: nn.Module) -> str | None:
    """The kernels' epilogue that computes `activation`; None for one that runs as a pass of its
    own."""
    if type(activation) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}[activation.approximate]
    return EPILOGUE.get(type(activation))


def fastest(make: Callable[..., LayerBuilder], like: Tensor) -> LayerBuilder:
    """Build a layer of the fastest linears. If running it as one operation is faster still, build
    it of linears that allow that. `like` is a tensor of its dtype and device."""
    parts = make()
    built, form, why = parts, "in parts", parts.layer.why_in_parts()
    if like.device.type != "cpu":
        why = f"no kernel computes a whole layer on {like.device}"
    elif why is None:
        form, why = "one operation", "wherever no gradients are recorded"
    elif (
        parts.layer.why_never_whole() is None
        and not (parts.picker.fixed or parts.picker.only)
        and (whole := make(packed=True)).layer.whole is not None
    ):
        layers = {"in parts": parts.layer, "one operation": whole.layer}
        form, why = parts.picker.pick_layer(layers, parts.keep.shape.hidden, like)
        built = whole if form == "one operation" else parts
    built.report("layer", None, form, why)
    return built


class LayerBuilder:
    """Builds one converted layer, and keeps a report of each decision.

    Args:
        exact: the weights before they were rounded to the picker's precision, for linears that
            are faster without; None: none is.
        packed: of linears in our dense and block-sparse form wherever a kernel takes them.
    """

    def __init__(
        self,
        sites: Sites,
        index: int,
        keep: LayerKeep,
        weights: Mapping[str, CompactLinear],
        picker: FormPicker,
        template: nn.Module,
        exact: Mapping[str, CompactLinear] | None = None,
        packed: bool = False,
    ) -> None:
        self.sites, self.index = sites, index
        self.architecture = sites.layers[index].architecture
        self.behaviour = behaviour(self.architecture, template, keep.shape.head_dim)
        self.keep, self.weights, self.picker, self.packed = keep, weights, picker, packed
        self.exact = exact
        self.reports: list[SiteReport] = []
        self.forms: dict[str, str] = {}
        self.stays: dict[str, str] = {}
        self.layer = self._build(template)

    def _build(self, template: nn.Module) -> Layer:
        stock: Any = type(template)  # no class of modules is hashable to mypy
        attention, cross, ffn = (
            self.architecture.attention,
            self.architecture.cross,
            self.architecture.ffn,
        )
        head_norms = [self._norm(template, path) for path in attention.head_norms]
        layer = layer_class(stock)(
            self._attention(),
            self._ffn(),
            self._norm(template, attention.norm),
            None if self.architecture.one_norm else self._norm(template, ffn.norm),
            self.architecture.norm_first,
            self._place,
            self._relative_bias(template),
            nn.ModuleList(head_norms) if head_norms else None,
            self._outlet(template, attention),
            self._outlet(template, ffn),
            None if cross is None else self._cross_attention(cross),
            None if cross is None else self._norm(template, cross.norm),
            self.architecture.parallel,
        )
        for name in self.architecture.told:
            setattr(layer, name, getattr(template, name, None))
        return layer.eval()

    @property
    def _place(self) -> int:
        """The number of the layer in its stack, which is its number in a cache."""
        return self.sites.place(self.index)[1]

    def _outlet(self, template: nn.Module, sublayer: schema.SubLayer) -> nn.Module | None:
        """Return what the output of a sub-layer goes through, if anything."""
        if sublayer.output_norm is not None:
            return self._norm(template, sublayer.output_norm)
        outlet = outlet_of(template, sublayer)
        return outlet if outlet is None or isinstance(outlet, nn.Module) else Scale(outlet)

    def _norm(self, template: nn.Module, path: str) -> nn.Module:
        architecture = self.architecture
        stock = template.get_submodule(path)
        return Norm.of(stock, architecture.rms_norm, architecture.norm_offset)

    def _relative_bias(self, template: nn.Module) -> nn.Module | None:
        """Return the module that makes the bias by relative position, if this layer has it."""
        path = self.architecture.attention.relative_bias
        held = module_at(template, path) if path else None
        if path is None or not isinstance(held, nn.Embedding):
            return held
        attention: Any = template.get_submodule(path.rpartition(".")[0])
        distance = attention.relative_attention_max_distance
        return RelativeBias(held, distance, self.behaviour.causal)

    def _attention(self) -> Attention | Constant | Skip:
        keep, shape, record = self.keep, self.keep.shape, self.architecture.attention
        if not keep.attention:
            return self.report("attention", Skip(), "removed", "the plan removes the sub-layer")
        heads, kv_heads = int(keep.heads.sum()), int(keep.kv_heads.sum())
        if not heads:
            left = Constant(self.weights["output"].bias)
            return self.report(
                "attention", left, "removed", "no heads are left; the output bias stays"
            )
        action = "dense" if heads == shape.heads else "sliced"
        self.report("heads", None, action, f"{heads} of {shape.heads} heads stay")
        rules = keep.kept_rules
        if rules is not None:
            self.report("attention_rules", None, "restricted", self._told(rules))
        if self.behaviour.softcap is not None:
            told = f"scores are capped at {self.behaviour.softcap:g}, which no kernel does"
            self.report("scores", None, "torch", told)
        device, biased = self.weights["query"].weight.device, record.biased
        return Attention(
            self._linear(("query", "key", "value")),
            self._linear(("output",)),
            heads,
            kv_heads,
            shape.head_dim,
            None if keep.grouped else keep.kv_of.to(device),
            self.behaviour.causal,
            self.behaviour.scale,
            self._place,
            keep.heads.nonzero()[:, 0].to(device) if biased and heads < shape.heads else None,
            rules,
            self.behaviour.rotary,
            biased,
            self.behaviour.softcap,
        )

    def _cross_attention(self, record: schema.CrossAttention) -> CrossAttention | Constant | Skip:
        keep, shape = self.keep, self.keep.shape
        if not keep.stays[record.name]:
            return self.report(record.name, Skip(), "removed", "the plan removes the sub-layer")
        query, key, value, output = record.roles
        heads = int(keep.units[record.units].sum())
        if not heads:
            left = Constant(self.weights[output].bias)
            return self.report(
                record.name, left, "removed", "no heads are left; the output bias stays"
            )
        action = "dense" if heads == shape.cross_heads else "sliced"
        self.report(record.units, None, action, f"{heads} of {shape.cross_heads} heads stay")
        return CrossAttention(
            self._linear((query,)),
            self._linear((key, value)),
            self._linear((output,)),
            heads,
            shape.head_dim,
            self.behaviour.scale,
            self._place,
        )

    def _told(self, rules: Sequence[Rule]) -> str:
        """Which heads of the dense layer each of the rules restricts."""
        heads: dict[Rule, list[str]] = {}
        for head, rule in zip(self.keep.heads.nonzero()[:, 0].tolist(), rules, strict=True):
            heads.setdefault(rule, []).append(str(head))
        return "; ".join(
            f"{rule} at head{'s' * (len(of) > 1)} {', '.join(of)}" for rule, of in heads.items()
        )

    def _ffn(self) -> FeedForward | Constant | Skip:
        keep = self.keep
        if not keep.ffn:
            return self.report("ffn", Skip(), "removed", "the plan removes the sub-layer")
        neurons = int(keep.neurons.sum())
        if not neurons:
            left = Constant(self.weights["down"].bias)
            return self.report("ffn", left, "removed", "no neurons are left; the output bias stays")
        action = "dense" if neurons == keep.shape.neurons else "sliced"
        self.report("neurons", None, action, f"{neurons} of {keep.shape.neurons} neurons stay")
        fused = fused_activation(self.behaviour.activation)
        first = ("gate", fused or "none") if keep.shape.gated else ("up", fused or "none")
        activations = {first[0]: first[1]}
        return FeedForward(
            self._linear(("up",), activations.get("up", "none")),
            self._linear(("down",)),
            self._linear(("gate",), activations["gate"]) if keep.shape.gated else None,
            None if fused else self.behaviour.activation,
        )

    def _linear(self, roles: tuple[str, ...], activation: str = "none") -> Linear:
        """The linears of `roles`, which read the same input, as one product."""
        lasts = [sublayer.last.role for sublayer in self.architecture.sublayers]
        name = "+".join((roles[0], *(role.rpartition(".")[2] for role in roles[1:])))
        site, with_residual = self.sites.name(self.index, name), roles[0] in lasts
        sites = [self.sites.name(self.index, role) for role in roles]
        precision, picker = self.picker.precision, self.picker
        notes = [note for part in sites for note in picker.notes.get(part, ())]
        why_not = next((picker.stays[part] for part in sites if part in picker.stays), None)
        stack = self._stack(self.weights, roles, activation)
        made = choices(stack, precision if why_not is None else None)
        if precision is not None and why_not is None and self.exact is not None:
            unrounded = choices(self._stack(self.exact, roles, activation), None)
            why_not = picker.why_slower(made.modules, unrounded.modules, with_residual)
            made = made if why_not is None else unrounded
        if precision is not None and why_not is not None:
            self.stays |= dict.fromkeys(sites, why_not)
            notes = [f"not in {precision}: {why_not}"]
        # Beside others in codes, a layer may still run as one operation.
        ours = made.whole if self.packed or why_not is not None else None
        form, why = picker.pick(site, made.modules, with_residual=with_residual, among=ours)
        self.forms[site] = form
        told = "; ".join(filter(None, (*self._rounded(roles), *made.notes, *notes, why)))
        return self.report(name, made.modules[form], form, told)

    def _stack(
        self, weights: Mapping[str, CompactLinear], roles: tuple[str, ...], activation: str
    ) -> Stack:
        return Stack(roles, [weights[role] for role in roles], self.keep, activation)

    def _rounded(self, roles: tuple[str, ...]) -> list[str]:
        """Describe the levels of `roles` for the report; nothing where they have none."""
        bits = {role: self.keep.levels[role].bits for role in roles if role in self.keep.levels}
        if not bits:
            return []
        whose = "" if len(bits) == len(roles) else f" of {', '.join(bits)}"
        sizes = " and ".join(f"{2**b - 1} levels of {b} bits" for b in sorted({*bits.values()}))
        return [f"values{whose} on {sizes}"]

    def report(self, part: str, module: Part, action: str, reason: str) -> Part:
        self.reports.append(SiteReport(self.sites.name(self.index, part), action, reason))
        return module
