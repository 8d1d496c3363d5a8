"""The proof of a conversion: every converted layer is run beside the stock layer it replaces.

A record of a family can be wrong, a setting unknown, a class patched: no inspection finds them all,
one comparison on random states does. The stock layers run under the plan's own gates, so that
nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.calls import states_behind, states_of, with_states
from secateurs.architectures.sites import Sites
from secateurs.conversion import transformers_attention
from secateurs.conversion.trial_runs import Run, runs_of
from secateurs.errors import FamilyError, SecateursError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan

# How far the update of a layer, what it adds to its states, may be off: relative to its largest
# entry, for what rounding differently on the way adds up to.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# The same where weights and states are rounded to codes, of layers that were proven before that: a
# linear is off by one percent of its typical output, and a trained layer was seen to be by 0.065.
ROUNDED = {"int8": 0.25}
# States that the norm in front scales up again are small, so that their own rounding hides little.
SCALE = {True: 0.1, False: 1.0}  # by whether the norms come first


@dataclass(frozen=True)
class Update:
    """What one call of a layer did: its states before and behind, `[B, T, d]`."""

    before: Tensor
    behind: Tensor


@dataclass(frozen=True)
class Evidence:
    """What the stock layers of a model computed.

    Attributes:
        updates: by run, then by layer, in the order of the calls.
        dtype: the coarsest floating dtype of the model.
        mixed: whether it has several dtypes.
    """

    runs: tuple[Run, ...]
    updates: tuple[list[list[Update]], ...]
    dtype: torch.dtype
    mixed: bool


@dataclass(frozen=True)
class Proof:
    """The largest difference of a layer's update that was seen, relative to what is allowed."""

    runs: tuple[str, ...]
    difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"every layer's update is within {self.difference:.1e} of the stock layer's "
            f"(allowed: {self.tolerance:.0e}), runs: {', '.join(self.runs)}"
        )


def observe(model: Any, sites: Sites, plan: SparsityPlan) -> Evidence:
    """Run the stock layers of `model` under `plan` on small random states.

    Raises FamilyError if the model cannot be run so.
    """
    runs = tuple(runs_of(model, sites))
    dtypes = {p.dtype for p in model.base_model.parameters() if p.is_floating_point()}
    dtype, mixed = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps), len(dtypes) > 1
    with (
        Gates(model, sites) as gates,
        _stock_attention(model),
        # torch runs a model of several dtypes in no other way.
        torch.autocast(model.device.type, dtype=dtype, enabled=mixed),
    ):
        gates.set_plan(plan)
        updates = tuple(_updates(model, sites, run) for run in runs)
    for index, calls in enumerate(updates[0]):
        if not calls:
            raise FamilyError(
                f"expected a model that runs all its {len(sites.layers)} layers, but "
                f"{sites.layer_path(index)} is never called: config.num_hidden_layers and the "
                "layers must agree"
            )
    return Evidence(runs, updates, dtype, mixed)


def prove(
    model: Any,
    sites: Sites,
    evidence: Evidence,
    precision: str | None = None,
    portion: Collection[int] | None = None,
) -> Proof:
    """Run the converted layers, of a precision, as the stock ones were run, and compare those of a
    `portion`, by default all.

    Raises FamilyError naming the first layer that computes something else.
    """
    dtype = evidence.dtype
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    if precision is not None:
        tolerance += ROUNDED[precision]
    worst, names = 0.0, []
    for run, stock in zip(evidence.runs, evidence.updates, strict=True):
        for gradients in (False, True) if run.gradients else (False,):
            name = f"{run.name} with gradients" if gradients else run.name
            names.append(name)
            with torch.autocast(model.device.type, dtype=dtype, enabled=evidence.mixed):
                ours = _updates(model, sites, run, gradients)
            for index, (calls, others) in enumerate(zip(stock, ours, strict=True)):
                if portion is not None and index not in portion:
                    continue
                for want, got in zip(calls, others, strict=True):
                    difference, rounding = _difference(got, want, run.visible, dtype)
                    allowed = tolerance + rounding
                    if not difference <= allowed:
                        raise FamilyError(_why_refused(sites, index, name, difference, allowed))
                    worst = max(worst, difference)
    return Proof(tuple(names), worst, tolerance)


def _why_refused(sites: Sites, index: int, run: str, difference: float, allowed: float) -> str:
    return (
        f"the converted {sites.layer_path(index)} does not compute what the stock layer does: its "
        f"update is off by {difference:.2g} in the run {run!r} (allowed: {allowed:.0e}); a module "
        "of the layer may be patched, or the model has a setting that the record of "
        f"{sites.architecture.model_type!r} does not know"
    )


def _difference(
    got: Update, want: Update, visible: Tensor | None, dtype: torch.dtype
) -> tuple[float, float]:
    """How far an update is off, relative to the largest entry of the one wanted, and how far
    rounding alone may take it, since states may be much larger than their update; infinity where
    only one of them is finite."""
    ours, stock, before = got.behind, want.behind, want.before
    if visible is not None:
        ours, stock, before = ours[visible], stock[visible], before[visible]
    finite = torch.isfinite(stock)
    if not torch.equal(finite, torch.isfinite(ours)):
        return float("inf"), 0.0
    ours, stock, before = (x[finite].double() for x in (ours, stock, before))
    off, update, size = (_largest(x) for x in (ours - stock, stock - before, stock))
    rounding = 4 * torch.finfo(dtype).eps * size
    # An update of nothing at all has nothing to be relative to.
    return (off / update, rounding / update) if update else (off / (size or 1.0), rounding)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _updates(model: Any, sites: Sites, run: Run, gradients: bool = False) -> list[list[Update]]:
    """What each layer does to random states that stand in for those of the layer before it, by
    layer, in the order of its calls. Raises FamilyError if the model does not run."""
    watchers = [
        _Watcher(index, SCALE[shape.architecture.norm_first])
        for index, shape in enumerate(sites.layers)
    ]
    with ExitStack() as stack, torch.set_grad_enabled(gradients):
        for index, watcher in enumerate(watchers):
            stack.callback(watcher.watch(sites.layer(model, index)))
        try:
            run.step(model.base_model)
        except SecateursError:
            raise
        except Exception as error:
            told = str(error).strip().partition("\n")[0]
            raise FamilyError(
                f"expected a model that runs a small batch, {type(model).__name__} fails with "
                f"{type(error).__name__}: {told}"
            ) from error
    return [watcher.updates for watcher in watchers]


class _Watcher:
    """Replaces the input of a layer by random states and keeps its output. Two watchers of the same
    `seed` use the same states."""

    def __init__(self, seed: int, scale: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.updates: list[Update] = []

    def watch(self, layer: nn.Module) -> Callable[[], None]:
        """Watch the calls of `layer` until the function returned is called."""
        hooks = (
            layer.register_forward_pre_hook(self._replace, with_kwargs=True),
            layer.register_forward_hook(self._record, with_kwargs=True),
        )

        def leave() -> None:
            for hook in hooks:
                hook.remove()

        return leave

    def _replace(self, _: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        like = states_of(args, named)
        states = self.scale * torch.randn(like.shape, generator=self.generator)
        return with_states(args, named, states.to(like))

    def _record(self, _: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        before = states_of(args, named)
        self.updates.append(Update(before, states_behind(output).detach()))


@contextmanager
def _stock_attention(model: Any) -> Iterator[None]:
    """Run the model on its own attention. If that is ours, use another instead."""
    before = model.config._attn_implementation
    if before == transformers_attention.NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        if before == transformers_attention.NAME:
            model.set_attn_implementation(before)
