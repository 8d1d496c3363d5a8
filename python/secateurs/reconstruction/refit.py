"""refit: let what a plan leaves make up for what it removes, in closed form.

Source: Park, Choi and Kang 2024, "Accurate Retraining-free Pruning for Pretrained Encoder-based
Language Models" (K-prune), section 4.3: each sub-layer of the pruned model is fitted to the
residual stream of the dense one, from the first layer upwards, so that errors do not pile up.
Departures: a ridge that draws the weights to their old values, and the bias is fitted too.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.architectures.linears import LinearView
from secateurs.architectures.schema import SubLayer
from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import door
from secateurs.data.batches import Batch, check_batches, evaluating, shown, unlabelled
from secateurs.errors import MethodError
from secateurs.masking.masked_model import apply
from secateurs.plan import SparsityPlan
from secateurs.reconstruction.layer_calls import LayerCall, input_of, layer_calls, outputs_of
from secateurs.reconstruction.least_squares import NormalEquations

_LOGGER = logging.getLogger(__name__)


@dataclass
class _Run:
    """One batch on its way through both models: the call of each layer, which tokens count, and the
    states in front of the layer at hand, of the dense model and of the pruned one, `[B, T, d]`."""

    calls: list[LayerCall]
    real: Tensor  # bool [B, T]
    dense: Tensor
    pruned: Tensor


@door
@torch.no_grad()
def refit(
    model: nn.Module,
    plan: SparsityPlan,
    batches: Iterable[Batch],
    *,
    ridge: float = 0.01,
    progress: bool = True,
) -> nn.Module:
    """A copy of `model` whose attention output and FFN output projections were fitted so that,
    under `plan`, each sub-layer gives what the dense model's residual stream has there.

    No labels, no gradients: one least-squares problem for each sub-layer, bottom-up on the model
    pruned so far. What the plan removes keeps its values; the plan stays valid for the result, so
    hand both to `apply`, `convert` or `distill`. The same data give the same weights. A projection
    that has a mask or levels of its own is left as it is.

    Args:
        model: a transformers model of a supported family; not changed.
        plan: made for it.
        batches: dicts of tensors as the model takes them; labels and padding are left out.
        ridge: how strongly weights are drawn to their old values, relative to the mean square of
            the features.
        progress: show a progress bar over the layers.

    Raises:
        DataError: no batches, or some that the model does not take.
        PlanError: a plan of another model, or weights that are not finite.
        MethodError: a negative ridge, activations that are not finite, a singular system.
    """
    batches = check_batches(batches)
    if not ridge >= 0:
        raise MethodError(f"expected a ridge of at least 0, got {ridge}")
    sites, pruned = find_sites(model), apply(model, plan).eval()
    fitted = copy.deepcopy(model)
    with evaluating(model), torch.no_grad():
        runs = [_start(model, sites, batch) for batch in batches]
        for index in shown(range(len(sites.layers)), len(sites.layers), "refit", progress):
            _Fit(sites, plan, index, model, pruned, fitted, ridge).layer(runs)
    return fitted


def _start(model: nn.Module, sites: Sites, batch: Batch) -> _Run:
    inputs = unlabelled(batch, model)
    states, calls = layer_calls(model, sites, inputs)
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != states.shape[:2]:
        mask = torch.ones(states.shape[:2], device=states.device)
    return _Run(calls, mask.bool(), states, states)


class _Fit:
    """The fit of one layer."""

    def __init__(
        self,
        sites: Sites,
        plan: SparsityPlan,
        index: int,
        dense: nn.Module,
        pruned: nn.Module,
        fitted: nn.Module,
        ridge: float,
    ) -> None:
        self.sites, self.index, self.ridge = sites, index, ridge
        self.keep = sites.keep(plan, index)
        self.models = (pruned, fitted)
        self.dense, self.pruned = sites.layer(dense, index), sites.layer(pruned, index)

    def layer(self, runs: list[_Run]) -> None:
        """Fit both sub-layers, and take the states of all runs through the layer."""
        attention, ffn = self.sites.architecture.sublayers
        targets = [self._targets(run) for run in runs]
        if self._is_fitted(attention, self.keep.attention):
            self._fit(attention, runs, [target for target, _ in targets])
        if self._is_fitted(ffn, self.keep.ffn):
            self._fit(ffn, runs, [target for _, target in targets])
        for run in runs:
            run.pruned = run.calls[self.index](self.pruned, run.pruned)

    def _is_fitted(self, sublayer: SubLayer, stays: bool) -> bool:
        role = sublayer.last.role
        return stays and role not in self.keep.weights and role not in self.keep.levels

    def _targets(self, run: _Run) -> tuple[Tensor, Tensor]:
        """The residual stream of the dense model behind each sub-layer, before a norm behind it;
        takes its states through the layer."""
        attention, ffn = self.sites.architecture.sublayers
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            for sublayer in (attention, ffn):
                last = self.dense.get_submodule(sublayer.last.path)
                stack.enter_context(outputs_of(last, outputs.append))
            behind = run.calls[self.index](self.dense, run.dense)
        first = run.dense + outputs[0]
        second = self._in_front_of_ffn(self.dense, first) + outputs[1]
        run.dense = behind
        return first, second

    def _in_front_of_ffn(self, layer: nn.Module, behind_attention: Tensor) -> Tensor:
        """The residual input of the FFN."""
        architecture = self.sites.architecture
        if architecture.norm_first:
            return behind_attention
        norm = layer.get_submodule(architecture.attention.norm)
        states: Tensor = norm(behind_attention)
        return states

    def _fit(self, sublayer: SubLayer, runs: list[_Run], targets: list[Tensor]) -> None:
        view = self._view(self.models[0], sublayer)
        columns = self.keep.sides(view.linear.role)[1].to(view.weight.device)
        sums = NormalEquations(
            int(columns.sum()), len(view.weight), view.bias is not None, view.weight.device
        )
        for run, target in zip(runs, targets, strict=True):
            features, residual = self._features(sublayer, run)
            errors = target - residual - view.module(features)
            sums.add(features[run.real][:, columns], errors[run.real])
        unknowns = int(columns.sum()) + (view.bias is not None)
        if sums.count < unknowns:
            _LOGGER.warning(
                "layers.%d.%s is fitted to %d tokens, fewer than its %d unknowns: only the ridge "
                "holds it; give more data",
                self.index,
                view.linear.role,
                sums.count,
                unknowns,
            )
        weight, bias = sums.solve(self.ridge)
        for model in self.models:
            own = self._view(model, sublayer)
            own.weight[:, columns] += weight.to(own.weight)
            if own.bias is not None:
                own.bias.add_(bias.to(own.bias))

    def _view(self, model: nn.Module, sublayer: SubLayer) -> LinearView:
        return self.sites.linear(model, self.index, sublayer.last.role)

    def _features(self, sublayer: SubLayer, run: _Run) -> tuple[Tensor, Tensor]:
        """What the last linear of a sub-layer of the pruned model reads, `[B, T, K]`, and the
        residual that its output is added to, `[B, T, d]`."""
        attention = self.sites.architecture.attention
        call, states = run.calls[self.index], run.pruned
        last = self.pruned.get_submodule(sublayer.last.path)
        if sublayer is attention:
            return input_of(last, lambda: call(self.pruned, states)), states
        outputs: list[Tensor] = []
        with outputs_of(self.pruned.get_submodule(attention.last.path), outputs.append):
            features = input_of(last, lambda: call(self.pruned, states))
        return features, self._in_front_of_ffn(self.pruned, states + outputs[0])
