"""The walk through a dense model and the pruned one, layer by layer, on the same batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateurs.architectures.linears import LinearView
from secateurs.architectures.schema import CrossAttention, Linear, SubLayer
from secateurs.architectures.sites import Sites
from secateurs.architectures.stock import outlet_of
from secateurs.data.batches import Batch, mask_of, unlabelled
from secateurs.reconstruction.layer_calls import LayerCall, input_of, outputs_of, passes
from secateurs.reconstruction.least_squares import NormalEquations

_LOGGER = logging.getLogger(__name__)


class State(NamedTuple):
    """Where one model is: the call of each layer of the stack at hand, and the states in front of
    the layer at hand, `[B, T, d]`."""

    calls: list[LayerCall]
    states: Tensor


@dataclass
class Run:
    """One batch on its way through both models, and which tokens of the stack at hand count."""

    batch: Batch
    dense: State
    pruned: State
    real: Tensor  # bool [B, T]
    passed: Passed | None = None
    """What the dense layer at hand gave, once it has run."""


class Passed(NamedTuple):
    """The residual stream of the dense model behind each sub-layer of one layer, before a norm
    behind it, by the name of the sub-layer, and the states behind the layer, `[B, T, d]`."""

    stream: dict[str, Tensor]
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

    def start(self, batch: Batch) -> list[Run]:
        """The runs of a batch: one, or of a model that runs one layer again and again, one for each
        time, which begins where the dense model has come to."""
        inputs = unlabelled(batch, self.dense)
        states = [State(p.calls, p.states) for p in passes(self.dense, self.sites, inputs)]
        return [Run(inputs, each, each, self._real(0, inputs, each.states)) for each in states]

    def groups(self, index: int) -> list[Group]:
        """Those of one layer, in the order in which it runs them; without the keys and values of
        cross-attention, which read what another stack gives."""
        found = []
        for sublayer in self._sublayers(index):
            last = sublayer.last
            inner = tuple(linear for linear in sublayer.linears if linear is not last)
            crossing = isinstance(sublayer, CrossAttention)
            found.append(Group(index, sublayer, inner[:1] if crossing else inner, False))
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
            wanted = self._passed(group.layer, run).stream[group.sublayer.name]
        else:
            wanted, _ = self._outputs(self.dense, group, run)
        given, features = self._outputs(self.pruned, group, run)
        off = (wanted - given)[run.real]
        if group.into_stream and group.sublayer.scale is not None:
            off = self._unscaled(group, off)
        sums.add(features[run.real][:, columns], off)

    def advance(self, index: int, run: Run) -> None:
        """Take the states of both models through a layer, and behind the last one of a stack in
        front of the next stack."""
        dense, run.passed = self._passed(index, run).behind, None
        pruned = self._call(self.pruned, index, run)
        if index + 1 < len(self.sites.layers) and self.sites.place(index + 1)[1] == 0:
            run.dense, run.pruned = (
                State(only.calls, only.states)
                for model, encoded in ((self.dense, dense), (self.pruned, pruned))
                for only in passes(model, self.sites, run.batch, encoded)
            )
            run.real = self._real(index + 1, run.batch, run.dense.states)
        else:
            run.dense, run.pruned = (
                run.dense._replace(states=dense),
                run.pruned._replace(states=pruned),
            )

    def _real(self, index: int, inputs: Batch, states: Tensor) -> Tensor:
        """Which tokens count in the stack of a layer, bool `[B, T]`."""
        mask = mask_of(inputs, self.sites.place(index)[0].name)
        if mask is None or mask.shape != states.shape[:2]:
            mask = torch.ones(states.shape[:2], device=states.device)
        return mask.bool()

    def _sublayers(self, index: int) -> tuple[SubLayer, ...]:
        return self.sites.layers[index].architecture.sublayers

    def _call(self, model: nn.Module, index: int, run: Run) -> Tensor:
        """What a layer of one of the models gives for the states in front of it."""
        state = run.dense if model is self.dense else run.pruned
        layer = self.sites.layer(model, index)
        return state.calls[self.sites.place(index)[1]](layer, state.states)

    def _passed(self, index: int, run: Run) -> Passed:
        """What the dense layer at hand gives; it runs once."""
        if run.passed is None:
            layer, outputs = self.sites.layer(self.dense, index), list[Tensor]()
            with ExitStack() as stack:
                for sublayer in self._sublayers(index):
                    last = layer.get_submodule(sublayer.last.path)
                    stack.enter_context(outputs_of(last, outputs.append))
                behind = self._call(self.dense, index, run)
            run.passed = Passed(self._stream(layer, index, run.dense.states, outputs), behind)
        return run.passed

    def _stream(
        self, layer: nn.Module, index: int, states: Tensor, outputs: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The residual stream behind each of the first sub-layers of a layer, before a norm behind
        it, by what their last linears give and the states in front of the layer."""
        architecture, found = self.sites.layers[index].architecture, dict[str, Tensor]()
        stream, norm = states, None
        for sublayer, output in zip(self._sublayers(index), outputs, strict=False):
            residual = stream if norm is None else norm(stream)
            stream = residual + let_out(layer, sublayer, output.reshape(states.shape))
            found[sublayer.name] = stream
            norm = None if architecture.norm_first else layer.get_submodule(sublayer.norm)
        return found

    def _outputs(self, model: nn.Module, group: Group, run: Run) -> tuple[Tensor, Tensor]:
        """The outputs of a group `[B, T, N]`, with the residual that they are added to if there is
        no norm between, before a norm behind it; and what the group reads, `[B, T, K]`."""
        layer, sublayers = self.sites.layer(model, group.layer), self._sublayers(group.layer)
        first = layer.get_submodule(group.linears[0].path)
        before = list[Tensor]()  # what the sub-layers in front give
        with ExitStack() as stack:
            for sublayer in sublayers[: sublayers.index(group.sublayer)]:
                last = layer.get_submodule(sublayer.last.path)
                stack.enter_context(outputs_of(last, before.append))
            features = input_of(first, lambda: self._call(model, group.layer, run))
        states = (run.dense if model is self.dense else run.pruned).states
        features = features.reshape(*states.shape[:2], -1)
        outputs = torch.cat([view.outputs(features) for view in self.views(group, model)], -1)
        if group.into_stream:
            stream = self._stream(layer, group.layer, states, [*before, outputs])
            outputs = stream[group.sublayer.name]
        return outputs, features

    def _unscaled(self, group: Group, off: Tensor) -> Tensor:
        """How far the outputs of a last linear are off, `[N, d]`, where the states behind its scale
        are so far off; by nothing where the scale is zero."""
        layer = self.sites.layer(self.pruned, group.layer)
        factor = let_out(layer, group.sublayer, torch.ones_like(off))
        return torch.where(factor == 0, 0.0, off / factor)


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
