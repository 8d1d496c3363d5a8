"""The walk through a dense model and the pruned one, layer by layer, on the same batches."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateurs.architectures.linears import LinearView
from secateurs.architectures.schema import Linear, SubLayer
from secateurs.architectures.sites import Sites
from secateurs.architectures.stock import outlet_of
from secateurs.data.batches import Batch, unlabelled
from secateurs.reconstruction.layer_calls import LayerCall, input_of, layer_calls, outputs_of
from secateurs.reconstruction.least_squares import NormalEquations

_LOGGER = logging.getLogger(__name__)


@dataclass
class Run:
    """One batch on its way through both models: the call of each layer, which tokens count, and the
    states in front of the layer at hand, of the dense model and of the pruned one, `[B, T, d]`."""

    calls: list[LayerCall]
    real: Tensor  # bool [B, T]
    dense: Tensor
    pruned: Tensor
    passed: Passed | None = None
    """What the dense layer at hand gave, once it has run."""


class Passed(NamedTuple):
    """The residual stream of the dense model behind each sub-layer of one layer, before a norm
    behind it, and the states behind the layer, `[B, T, d]`."""

    attention: Tensor
    ffn: Tensor
    behind: Tensor


@dataclass(frozen=True)
class Group:
    """Linears of one layer that read the same input.

    Attributes:
        is_last: whether it is the linear whose output is added to the residual.
    """

    layer: int
    sublayer: SubLayer
    linears: tuple[Linear, ...]
    is_last: bool

    @property
    def into_stream(self) -> bool:
        """Whether what the group gives adds up with the residual: not behind a norm of its own."""
        return self.is_last and self.sublayer.output_norm is None


@dataclass(frozen=True)
class Walk:
    """What linears of the pruned model read, and what they should give for it.

    The last linear of a sub-layer should bring the residual stream to that of the dense model; any
    other, and one with a norm behind it, should give what it gives in the dense model: what earlier
    layers lost is made up for.

    Attributes:
        sites: of both models.
        pruned: a copy of the dense model that loses weights on the way.
    """

    sites: Sites
    dense: nn.Module
    pruned: nn.Module

    def start(self, batch: Batch) -> Run:
        inputs = unlabelled(batch, self.dense)
        states, calls = layer_calls(self.dense, self.sites, inputs)
        mask = inputs.get("attention_mask")
        if mask is None or mask.shape != states.shape[:2]:
            mask = torch.ones(states.shape[:2], device=states.device)
        return Run(calls, mask.bool(), states, states)

    def groups(self, index: int) -> list[Group]:
        """Those of one layer, in the order in which it runs them."""
        found = []
        for sublayer in self.sites.architecture.sublayers:
            last = sublayer.last
            inner = tuple(linear for linear in sublayer.linears if linear is not last)
            found.append(Group(index, sublayer, inner, False))
            found.append(Group(index, sublayer, (last,), True))
        return found

    def views(self, group: Group, model: nn.Module | None = None) -> list[LinearView]:
        """The linears of `group` in `model`, by default the pruned one."""
        model = self.pruned if model is None else model
        return [self.sites.linear(model, group.layer, linear.role) for linear in group.linears]

    def equations(self, group: Group, columns: Tensor) -> NormalEquations:
        """Sums for all linears of `group`, one above the other, over the inputs where `columns`
        `[K]` is True. A bias is fitted where all of them have one."""
        views = self.views(group)
        with_bias = all(view.bias is not None for view in views)
        outputs = sum(len(view.weight) for view in views)
        return NormalEquations(int(columns.sum()), outputs, with_bias, columns.device)

    def add(self, sums: NormalEquations, group: Group, columns: Tensor, run: Run) -> None:
        """Take in what `group` reads in `run`, and how far its outputs are from those wanted."""
        if group.into_stream:
            passed = self._passed(group.layer, run)
            attention = self.sites.architecture.attention
            wanted = passed.attention if group.sublayer is attention else passed.ffn
        else:
            wanted, _ = self._outputs(self.dense, group, run, run.dense)
        given, features = self._outputs(self.pruned, group, run, run.pruned)
        off = (wanted - given)[run.real]
        if group.into_stream and group.sublayer.scale is not None:
            off = self._unscaled(group, off)
        sums.add(features[run.real][:, columns], off)

    def advance(self, index: int, run: Run) -> None:
        """Take the states of both models through a layer."""
        run.dense, run.passed = self._passed(index, run).behind, None
        run.pruned = run.calls[index](self.sites.layer(self.pruned, index), run.pruned)

    def _passed(self, index: int, run: Run) -> Passed:
        """What the dense layer at hand gives; it runs once."""
        if run.passed is None:
            layer, outputs = self.sites.layer(self.dense, index), list[Tensor]()
            with ExitStack() as stack:
                for sublayer in self.sites.architecture.sublayers:
                    last = layer.get_submodule(sublayer.last.path)
                    stack.enter_context(outputs_of(last, outputs.append))
                behind = run.calls[index](layer, run.dense)
            added = (
                let_out(layer, sublayer, output.reshape(run.dense.shape))
                for sublayer, output in zip(self.sites.architecture.sublayers, outputs, strict=True)
            )
            attention = run.dense + next(added)
            ffn = self._in_front_of_ffn(layer, attention) + next(added)
            run.passed = Passed(attention, ffn, behind)
        return run.passed

    def _outputs(
        self, model: nn.Module, group: Group, run: Run, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The outputs of a group `[B, T, N]`, with the residual that they are added to if there is
        no norm between, before a norm behind it; and what the group reads, `[B, T, K]`."""
        layer, call = self.sites.layer(model, group.layer), run.calls[group.layer]
        first, attention = group.linears[0], self.sites.architecture.attention
        behind_attention: list[Tensor] = []
        with outputs_of(layer.get_submodule(attention.last.path), behind_attention.append):
            features = input_of(layer.get_submodule(first.path), lambda: call(layer, states))
        features = features.reshape(*states.shape[:2], -1)
        outputs = torch.cat([view.outputs(features) for view in self.views(group, model)], -1)
        if group.into_stream:
            if group.sublayer is not attention:
                added = let_out(layer, attention, behind_attention[0])
                states = self._in_front_of_ffn(layer, states + added)
            outputs = states + let_out(layer, group.sublayer, outputs)
        return outputs, features

    def _unscaled(self, group: Group, off: Tensor) -> Tensor:
        """How far the outputs of a last linear are off, `[N, d]`, where the states behind its scale
        are so far off; by nothing where the scale is zero."""
        layer = self.sites.layer(self.pruned, group.layer)
        factor = let_out(layer, group.sublayer, torch.ones_like(off))
        return torch.where(factor == 0, 0.0, off / factor)

    def _in_front_of_ffn(self, layer: nn.Module, behind_attention: Tensor) -> Tensor:
        """The residual input of the FFN."""
        architecture = self.sites.architecture
        if architecture.norm_first:
            return behind_attention
        norm = layer.get_submodule(architecture.attention.norm)
        states: Tensor = norm(behind_attention)
        return states


def let_out(layer: nn.Module, sublayer: SubLayer, output: Tensor) -> Tensor:
    """What a stock layer adds to the residual of the output of a sub-layer, `[..., d]`."""
    outlet = outlet_of(layer, sublayer)
    if outlet is None:
        return output
    product: Tensor = outlet(output) if isinstance(outlet, nn.Module) else output * outlet
    return product


def warn_of_few_tokens(sums: NormalEquations, group: Group) -> None:
    """Warn where only the ridge holds a fit."""
    unknowns = sums.features + sums.with_bias
    if sums.count < unknowns:
        _LOGGER.warning(
            "layers.%d.%s is fitted to %d tokens, fewer than its %d unknowns: only the ridge "
            "holds it; give more data",
            group.layer,
            "+".join(linear.role for linear in group.linears),
            sums.count,
            unknowns,
        )
