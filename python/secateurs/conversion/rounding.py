"""What calibration data decide before linears are rounded to codes of 8 bits: factors moved from
inputs to weights, the codes of each weight, its bias, and which linears are better not rounded.

Of the tokens, three of four decide and the fourth judges: what does not lower the error of a linear
on those is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.schema import SubLayer
from secateurs.architectures.sites import Sites
from secateurs.architectures.stock import behaviour
from secateurs.conversion.calibration import Calibration
from secateurs.conversion.error_feedback import rounded_together
from secateurs.conversion.slicing import CompactLinear
from secateurs.conversion.smoothing import (
    factors_of,
    may_write_less,
    norms_less,
    reading_more,
    weights_of,
    writing_less,
)
from secateurs.data.batches import Batch
from secateurs.formats.int8_block_sparse import codes, row_scales
from secateurs.ops.int8_linear.operands import GROUP
from secateurs.ops.int8_linear.reference import quantise
from secateurs.plan import SparsityPlan

JUDGE = 4  # every so many tokens, one judges

Linears = dict[str, CompactLinear]


@dataclass
class Layer:
    """One layer on its way to codes.

    Attributes:
        stock: lends its norms.
        exact: what the plan leaves of its linears, by role, with factors moved, not rounded.
        inputs: `[M, K]` that each reads, float32, by role.
        linears: the same on their codes, with their biases.
        notes: what was decided for a linear, and its error, by role.
        stays: why a linear is not rounded, by role.
    """

    stock: nn.Module
    exact: Linears
    inputs: dict[str, Tensor]
    keep: LayerKeep
    linears: Linears = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)

    def note(self, role: str, told: str) -> None:
        self.notes.setdefault(role, []).append(told)

    def may_change(self, *roles: str) -> bool:
        """Whether there are linears of these roles, off the levels of the plan."""
        there = all(role in self.exact and self.exact[role].weight.numel() for role in roles)
        return there and not any(role in self.keep.levels for role in roles)


def decide(
    masked: nn.Module,
    sites: Sites,
    plan: SparsityPlan,
    stock: list[nn.Module],
    compact: list[Linears],
    batches: Iterable[Batch],
    alpha: float,
    max_error: float,
) -> list[Layer]:
    """Decide for every layer of a stock model.

    Args:
        masked: the model, masked as `plan` says.
        stock: the layers, which lend their norms; they are not changed.
        compact: what `plan` leaves of the linears of each layer, by role.
        alpha, max_error: as `convert` takes them.
    """
    calibration, layers = Calibration(masked, sites.of_one_stack("calibration"), batches), []
    for index, (template, linears) in enumerate(zip(stock, compact, strict=True)):
        keep, read = sites.keep(plan, index), calibration.layer(index)
        inputs = {role: x[:, keep.sides(role)[1].to(x.device)] for role, x in read.items()}
        layer = Layer(template, dict(linears), inputs, keep)
        move_factors(layer, alpha)
        choose_codes(layer, max_error)
        layer.inputs = {}  # the next layer's take their place
        layers.append(layer)
    return layers


def move_factors(layer: Layer, alpha: float) -> None:
    """Move factors from the inputs of linears into their weights, and out of what writes these
    inputs, wherever that is exact and lowers the error."""
    architecture = layer.keep.shape.architecture
    attention, ffn = architecture.sublayers
    if architecture.norm_first and attention.norm != ffn.norm and not architecture.norm_offset:
        for sublayer in architecture.sublayers:
            _out_of_norm(layer, sublayer, alpha)
    if layer.keep.attention and layer.may_change("value", "output"):
        width = layer.keep.shape.head_dim
        heads = layer.keep.kv_of.long().to(layer.inputs["output"].device)
        source = heads[:, None] * width + torch.arange(width, device=heads.device)
        _out_of_linear(layer, "value", "output", alpha, source.flatten())
    up = "up"
    relu = isinstance(behaviour(architecture, layer.stock, 1).activation, nn.ReLU)
    if layer.keep.ffn and layer.may_change(up, "down") and (layer.keep.shape.gated or relu):
        source = torch.arange(len(layer.exact[up].weight), device=layer.inputs["down"].device)
        _out_of_linear(layer, up, "down", alpha, source)


def _out_of_norm(layer: Layer, sublayer: SubLayer, alpha: float) -> None:
    architecture = layer.keep.shape.architecture
    roles = [role for role in sublayer.roles if role != sublayer.last.role]
    norm = layer.stock.get_submodule(sublayer.norm)
    if not layer.may_change(*roles) or not may_write_less(norm, architecture.rms_norm):
        return
    source = torch.arange(layer.keep.shape.hidden, device=layer.inputs[roles[0]].device)
    factor = _lowering(layer, roles, alpha, source, len(source))
    if factor is not None:
        layer.stock = norms_less(layer.stock, sublayer.norm, factor)
        _read_more(layer, roles, factor, "the norm in front")


def _out_of_linear(layer: Layer, writer: str, reader: str, alpha: float, source: Tensor) -> None:
    factor = _lowering(layer, [reader], alpha, source, len(layer.exact[writer].weight))
    if factor is not None:
        layer.exact[writer] = writing_less(layer.exact[writer], factor)
        _read_more(layer, [reader], factor[source], writer)


def _lowering(
    layer: Layer, roles: list[str], alpha: float, source: Tensor, sources: int
) -> Tensor | None:
    """Factors `[S]` that lower the error of linears; None where they do not."""
    inputs, weight = layer.inputs[roles[0]], weights_of([layer.exact[r] for r in roles])
    learn, judge = _parts(inputs)
    if not len(learn):
        return None
    factor = factors_of(learn, weight, alpha, source, sources)
    columns = factor[source]
    before = _square(_errors(judge, weight, _nearest(weight)))
    after = weight * columns
    return factor if _square(_errors(judge / columns, after, _nearest(after))) < before else None


def _read_more(layer: Layer, roles: list[str], columns: Tensor, whence: str) -> None:
    for role in roles:
        layer.exact[role] = reading_more(layer.exact[role], columns)
        layer.inputs[role] = layer.inputs[role] / columns
        layer.note(role, f"factors moved here from {whence}")


def choose_codes(layer: Layer, max_error: float) -> None:
    """Choose the codes and the bias of each linear; leave products of which one linear's error is
    above a bound."""
    layer.linears = dict(layer.exact)
    for role, linear in layer.exact.items():
        if linear.weight.numel() and len(layer.inputs[role]):
            _choose_codes(layer, role, linear, max_error)
    attention = layer.keep.shape.architecture.attention
    joined = [role for role in attention.roles if role != attention.last.role]
    worst = next((role for role in joined if role in layer.stays), None)
    if worst is not None:
        for role in joined:
            layer.linears[role] = layer.exact[role]
            layer.stays.setdefault(role, f"{worst} beside it stays")


def _choose_codes(layer: Layer, role: str, linear: CompactLinear, max_error: float) -> None:
    weight, (learn, judge) = linear.weight.float(), _parts(layer.inputs[role])
    levels = layer.keep.levels.get(role)
    scales = row_scales(weight)
    if levels is not None:
        scales = torch.full_like(scales, levels.scale)
    rounded, how = codes(weight, scales) * scales[:, None], []
    errors = _errors(judge, weight, rounded)
    if layer.may_change(role):
        stays = None
        if role in layer.keep.weights:
            rows, columns = layer.keep.sides(role)
            stays = layer.keep.elements(role)[rows][:, columns].to(weight.device)
        together = rounded_together(weight, scales, rounded_inputs(learn), stays)
        others = _errors(judge, weight, together)
        if _square(others) < _square(errors):
            rounded, errors = together, others
            how.append("codes by error feedback")
    bias = linear.bias
    if bias is not None:
        shift = _errors(learn, weight, rounded).mean(0) if len(learn) else torch.zeros_like(scales)
        if _square(errors - shift) < _square(errors):
            errors, bias = errors - shift, bias - shift.to(bias)
            how.append("bias fitted")
    size = float((judge @ weight.T).double().square().sum())
    error = (_square(errors) / size) ** 0.5 if size else 0.0
    told = f"error {error:.4f} on calibration data"
    if error > max_error:
        layer.stays[role] = f"{told} in int8, more than {max_error:g}"
        return
    layer.note(role, ", ".join([told, *how]))
    dtype = linear.weight.dtype
    kept_scales = None if levels is not None else scales
    layer.linears[role] = replace(linear, weight=rounded.to(dtype), bias=bias, scales=kept_scales)


def rounded_inputs(x: Tensor) -> Tensor:
    """`x` `[M, K]` as a product in codes reads it."""
    groups = [quantise(group) for group in x.split(GROUP, dim=-1)]
    return torch.cat([codes * scale for codes, scale in groups], -1) if groups else x


def _parts(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that decide, and those that judge; a single one judges alone."""
    place = torch.arange(len(inputs), device=inputs.device) % JUDGE
    return inputs[place != 0], inputs[place == 0]


def _nearest(weight: Tensor) -> Tensor:
    scales = row_scales(weight)
    return codes(weight, scales) * scales[:, None]


def _errors(inputs: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
    """`[M, N]` that the product of rounded inputs and weight is off."""
    return rounded_inputs(inputs) @ rounded.T - inputs @ weight.T


def _square(errors: Tensor) -> float:
    return float(errors.double().square().sum())
