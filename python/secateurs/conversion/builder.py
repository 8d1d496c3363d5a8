"""convert: a model that loses what a plan removes for real, and runs the rest on our kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from secateurs.architectures.sites import Family, LayerKeep, Sites, find_sites
from secateurs.architectures.stock import behaviour, check_stock, forget_recording
from secateurs.checks import door
from secateurs.conversion import transformers_attention
from secateurs.conversion.cost import FormPicker
from secateurs.conversion.inherited import adopt, disown, record_of
from secateurs.conversion.modules import (
    Attention,
    Constant,
    DenseLinear,
    FeedForward,
    Layer,
    Norm,
    PackedLinear,
    Skip,
    husk,
    layer_class,
)
from secateurs.conversion.pattern_linear import PatternLinear, pack
from secateurs.conversion.proof import observe, prove
from secateurs.errors import FormatError, PlanError
from secateurs.formats import BlockSparseWeight, LibraryWeight, VectorWeight
from secateurs.masking.masked_model import check_finite
from secateurs.plan import SparsityPlan

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


@runtime_checkable
class Costs(Protocol):
    """Who knows what the forms of a linear or of a layer cost, as a `CostTable` does."""

    def times(
        self, name: str, forms: Mapping[str, nn.Module], x: Tensor, residual: Tensor | None
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class SiteReport:
    """What convert did at one site, and why."""

    site: str
    action: str
    reason: str


@dataclass
class Conversion:
    """What a converted model remembers: its plan, the sites of the dense model, and every
    decision."""

    plan: SparsityPlan
    sites: Sites
    reports: list[SiteReport] = field(default_factory=list)
    forms: dict[str, str] = field(default_factory=dict)  # of each linear
    tokens: int = 256  # that decisions are for
    husks: list[nn.Module] = field(default_factory=list)  # of the stock layers


@dataclass(frozen=True)
class CompactLinear:
    """One stock linear after slicing: `weight` `[N', K']`, zero in removed blocks; `keep` is the
    grid of its blocks if the plan has blocks there and slicing left them aligned."""

    weight: Tensor
    bias: Tensor | None
    keep: Tensor | None = None
    block: tuple[int, int] | None = None


class Explanation(list[SiteReport]):
    """The decisions of a conversion; prints as a table."""

    def __str__(self) -> str:
        widths = [max((len(row[i]) for row in self._rows()), default=0) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(r.site, r.action, r.reason) for r in self]


@door
def explain(model: nn.Module) -> Explanation:
    """What was done at every site of a converted model, and why. Raises PlanError for a model not
    converted."""
    return Explanation(conversion_of(model).reports)


def conversion_of(model: nn.Module) -> Conversion:
    """The record of a converted model. Raises PlanError for any other."""
    conversion = record_of(model)
    if conversion is None:
        raise PlanError(
            f"expected a model made by secateurs.convert or load, got {type(model).__name__}"
        )
    return conversion


@door
@torch.no_grad()
def convert(
    model: nn.Module,
    plan: SparsityPlan,
    *,
    tokens: int = 256,
    costs: Costs | None = None,
    inplace: bool = False,
) -> nn.Module:
    """The model without what `plan` removes, on our kernels; computes what `apply(model, plan)`
    computes.

    Heads and neurons are sliced off, removed sub-layers skipped, block-sparse weights packed, q, k
    and v fused into one product, biases, activations and residuals fused into the products. Convert
    on the device and in the dtype the model will run in. The result is for inference; `explain`
    tells every decision.

    Args:
        model: a transformers model of a supported family; untouched unless `inplace`.
        plan: made for this model; an empty plan gives a dense model on our kernels.
        tokens: of the calls by which forms are compared.
        costs: what each form costs; by default measured here.

    Raises:
        FamilyError: the model is not supported, its layers are not stock, or a converted one does
            not compute what it did; the model is as it was.
        PlanError: the plan does not fit the model, or a weight holds NaN or infinity.
    """
    sites = find_sites(model)
    plan.validate(sites, sites.fingerprint())
    check_finite(model, sites.path)
    check_stock(model, sites)
    picker = FormPicker(tokens=tokens, costs=costs)
    if not inplace:
        model = copy.deepcopy(model)
    with _undone_on_error(model, sites):
        evidence = observe(model.eval(), sites, plan)
        compact = [
            {role: slice_linear(sites, model, plan, i, role) for role in shape.linears()}
            for i, shape in enumerate(sites.layers)
        ]
        rebuild(model, list(model.get_submodule(sites.path)), sites, plan, compact, picker)
        proof = prove(model, sites, evidence)
    conversion_of(model).reports.insert(0, SiteReport("layers", "proven", str(proof)))
    return model


@contextmanager
def _undone_on_error(model: nn.Module, sites: Sites) -> Iterator[None]:
    """Give `model` its stock layers, mode and attention back if the block raises."""
    layers, attention = model.get_submodule(sites.path), model.config._attn_implementation
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    except BaseException:
        disown(model)
        _set_layers(model, sites, layers)
        model.set_attn_implementation(attention)
        for module, training in modes.items():
            module.training = training
        raise


def _set_layers(model: nn.Module, sites: Sites, layers: nn.Module) -> None:
    parent, _, name = sites.path.rpartition(".")
    setattr(model.get_submodule(parent), name, layers)


def slice_linear(
    sites: Sites, model: nn.Module, plan: SparsityPlan, index: int, role: str
) -> CompactLinear:
    """The rows and columns of one linear that `plan` keeps, with the zeros of its blocks, on its
    levels."""
    linear, keep = sites.linear(model, index, role), sites.keep(plan, index)
    rows, columns = (side.to(linear.weight.device) for side in keep.sides(role))
    weight, bias = linear.weight.detach(), linear.bias
    grid, block = compact_blocks(keep, role)
    if role in keep.weights:
        weight = weight * keep.elements(role).to(weight)
    weight = keep.rounded(role, weight)
    weight = _selected(_selected(weight, rows, 0), columns, 1)
    bias = None if bias is None else _selected(bias.detach(), rows, 0)
    return CompactLinear(weight, bias, grid, block)


def _selected(x: Tensor, keep: Tensor, dim: int) -> Tensor:
    """`x` along `dim` where `keep` is True; itself where all of it stays."""
    return x if bool(keep.all()) else x.index_select(dim, keep.nonzero()[:, 0])


def compact_blocks(keep: LayerKeep, role: str) -> tuple[Tensor | None, tuple[int, int] | None]:
    """The block grid of a sliced linear, if its plan has blocks and slicing removed only whole
    block rows and columns; else nothing: blocks that no longer align are stored dense."""
    mask = keep.blocks.get(role)
    if mask is None:
        return None, None
    grid = mask.keep
    for dim, (side, size) in enumerate(zip(keep.sides(role), mask.block, strict=True)):
        pieces = side.view(-1, size)
        if not bool((pieces.all(1) | ~pieces.any(1)).all()):
            return None, None
        grid = grid[pieces[:, 0]] if dim == 0 else grid[:, pieces[:, 0]]
    return grid, mask.block


def rebuild(
    model: nn.Module,
    templates: list[nn.Module],
    sites: Sites,
    plan: SparsityPlan,
    compact: list[dict[str, CompactLinear]],
    picker: FormPicker,
) -> nn.Module:
    """Replace the layers of `model`, in place, by converted ones made of compact weights.

    `templates` are stock layers that lend their norms and their class.
    """
    conversion = Conversion(plan, sites, tokens=picker.tokens, husks=[husk(t) for t in templates])
    layers = []
    for i, (template, weights) in enumerate(zip(templates, compact, strict=True)):
        keep = sites.keep(plan, i)
        make = partial(_LayerBuilder, sites.family, i, keep, weights, picker, template)
        # Where only the norms have data (a model that is read, or made again), one of theirs.
        like = max(template.parameters(), key=lambda tensor: tensor.device.type != "meta")
        built = _fastest(make, like)
        layers.append(built.layer)
        conversion.reports += built.reports
        conversion.forms |= built.forms
    _set_layers(model, sites, nn.ModuleList(layers))
    forget_recording(model)
    adopt(model, conversion)
    model.set_attn_implementation(transformers_attention.NAME)
    return model.eval()


def _fastest(make: Callable[..., _LayerBuilder], like: Tensor) -> _LayerBuilder:
    """A layer of the fastest linears, or, where that is faster still, of linears that make it one
    operation. `like`: a tensor of its dtype and device."""
    parts = make()
    built, form, why = parts, "in parts", parts.layer.why_in_parts()
    if like.device.type != "cpu":
        why = f"no kernel computes a whole layer on {like.device}"
    elif why is None:
        form, why = "one operation", "wherever no gradients are recorded"
    elif (
        parts.layer.why_never_whole() is None
        and not parts.picker.fixed
        and (whole := make(packed=True)).layer.whole is not None
    ):
        layers = {"in parts": parts.layer, "one operation": whole.layer}
        form, why = parts.picker.pick_layer(layers, parts.keep.shape.hidden, like)
        built = whole if form == "one operation" else parts
    built.report("layer", None, form, why)
    return built


class _LayerBuilder:
    """Builds one converted layer, and keeps a report of each decision.

    With `packed`, of linears in our dense and block-sparse form wherever a kernel takes them.
    """

    def __init__(
        self,
        family: Family,
        index: int,
        keep: LayerKeep,
        weights: Mapping[str, CompactLinear],
        picker: FormPicker,
        template: nn.Module,
        packed: bool = False,
    ) -> None:
        self.family, self.index = family, index
        self.behaviour = behaviour(family, template, keep.shape.head_dim)
        self.keep, self.weights, self.picker, self.packed = keep, weights, picker, packed
        self.reports: list[SiteReport] = []
        self.forms: dict[str, str] = {}
        self.layer = self._build(template)

    def _build(self, template: nn.Module) -> Layer:
        layer = layer_class(type(template))(
            self._attention(),
            self._ffn(),
            Norm.of(template.get_submodule(self.family.attention_norm), self.family.rms_norm),
            Norm.of(template.get_submodule(self.family.ffn_norm), self.family.rms_norm),
            self.family.norm_first,
            self.index,
        )
        return layer.eval()

    def _attention(self) -> nn.Module:
        keep, shape = self.keep, self.keep.shape
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
        even = torch.arange(heads) // max(1, heads // kv_heads)
        uneven = heads % kv_heads != 0 or not torch.equal(keep.kv_of, even.to(torch.int32))
        return Attention(
            self._linear(("query", "key", "value")),
            self._linear(("output",)),
            heads,
            kv_heads,
            shape.head_dim,
            keep.kv_of.to(self.weights["query"].weight.device) if uneven else None,
            self.behaviour.causal,
            self.behaviour.scale,
            self.index,
        )

    def _ffn(self) -> nn.Module:
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

    def _linear(self, roles: tuple[str, ...], activation: str = "none") -> nn.Module:
        """The linears of `roles`, which read the same input, as one product."""
        parts = [self.weights[role] for role in roles]
        weight = _stacked([part.weight for part in parts])
        bias = _stacked_bias(parts)
        forms: dict[str, nn.Module] = {"torch": DenseLinear(weight, bias, activation)}
        panels = BlockSparseWeight.pack_dense(weight)
        packed: dict[str, Any] = {"dense panels": PackedLinear(panels, bias, activation)}
        notes, name = self._rounded(roles), "+".join(roles)
        grid, block = _common_grid(parts)
        if grid is not None and block is not None:
            sparse = BlockSparseWeight.pack(weight, grid, block)
            packed["block-sparse"] = PackedLinear(sparse, bias, activation)
            notes.append(f"{sparse.density:.2f} of the {block[0]}x{block[1]} blocks are stored")
        elif any(role in self.keep.blocks for role in roles):
            notes.append("blocks no longer align once heads or neurons are sliced off")
        if any(role in self.keep.patterns for role in roles):
            try:
                regular = self._patterned(roles, weight)
                p, q = next(self.keep.patterns[r].block for r in roles)
                form = f"pattern {p}x{q} at {regular.density:.2f}"
                packed[form] = PatternLinear(regular, bias, activation)
            except FormatError as error:
                notes.append(f"no one pattern is left to pack ({error})")
        for form, module in packed.items():
            refusal = module.refusal()
            if refusal is None:
                forms[form] = module
            else:
                notes.append(f"no kernel for {form} ({refusal})")
        ours = [form for form, module in forms.items() if isinstance(module, PackedLinear)]
        site, adds = f"layers.{self.index}.{name}", roles[0] in ("output", "down")
        form, why = self.picker.pick(
            site, forms, with_residual=adds, among=ours if self.packed else None
        )
        self.forms[site] = form
        return self.report(name, forms[form], form, "; ".join(filter(None, (*notes, why))))

    def _rounded(self, roles: tuple[str, ...]) -> list[str]:
        """What there is to tell of the levels of `roles`."""
        bits = {role: self.keep.levels[role].bits for role in roles if role in self.keep.levels}
        if not bits:
            return []
        whose = "" if len(bits) == len(roles) else f" of {', '.join(bits)}"
        sizes = " and ".join(f"{2**b - 1} levels of {b} bits" for b in sorted({*bits.values()}))
        return [f"values{whose} on {sizes}"]

    def _patterned(self, roles: tuple[str, ...], weight: Tensor) -> VectorWeight | LibraryWeight:
        """The stacked weight of `roles` by the pattern they share. Raises FormatError if they share
        none, or slicing broke it."""
        masks = [self.keep.patterns.get(role) for role in roles]
        blocks = {None if mask is None else mask.block for mask in masks}
        block = blocks.pop()
        if blocks or block is None:
            raise FormatError(f"expected one kind of pattern in {', '.join(roles)}")
        kept = []
        for role, mask in zip(roles, masks, strict=True):
            rows, columns = self.keep.sides(role)
            kept.append(mask.keep[rows][:, columns])  # type: ignore[union-attr]
        return pack(weight, torch.cat(kept), block)

    def report(self, part: str, module: Part, action: str, reason: str) -> Part:
        self.reports.append(SiteReport(f"layers.{self.index}.{part}", action, reason))
        return module


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stacked_bias(parts: list[CompactLinear]) -> Tensor | None:
    """One bias for linears stacked by rows, zero for those that have none."""
    if all(part.bias is None for part in parts):
        return None
    return _stacked(
        [
            part.weight.new_zeros(part.weight.shape[0]) if part.bias is None else part.bias
            for part in parts
        ]
    )


def _common_grid(
    parts: list[CompactLinear],
) -> tuple[Tensor | None, tuple[int, int] | None]:
    """One block grid for linears stacked by rows; those without blocks count as full."""
    blocks = {part.block for part in parts if part.block is not None}
    if len(blocks) != 1:
        return None, None
    (bn, bk) = block = blocks.pop()
    grids = []
    for part in parts:
        n, k = part.weight.shape
        if n % bn or k % bk:
            return None, None
        grids.append(part.keep if part.keep is not None else torch.ones(n // bn, k // bk).bool())
    return torch.cat(grids), block
