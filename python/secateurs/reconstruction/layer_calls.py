"""Running the layers of a stock model one by one, as the model itself calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from secateurs.architectures.calls import (
    states_behind,
    states_of,
    with_states,
    with_states_behind,
)
from secateurs.architectures.sites import Sites, Stack
from secateurs.data.batches import Batch, run
from secateurs.errors import FamilyError


@dataclass(frozen=True)
class LayerCall:
    """What a model hands to one of its layers, without the states."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(self, layer: nn.Module, states: Tensor) -> Tensor:
        """The layer of `states` `[B, T, d]`."""
        args, named = with_states(self.args, self.named, states)
        return states_behind(layer(*args, **named))


class _Stop(Exception):
    """What was wanted of a layer is known."""


class Pass(NamedTuple):
    """One run through the layers of a stack: the states `[B, T, d]` in front of the first, and the
    call of each."""

    states: Tensor
    calls: list[LayerCall]


def passes(
    model: nn.Module, sites: Sites, batch: Batch, encoded: Tensor | None = None
) -> list[Pass]:
    """The runs of a model through a stack on `batch`: one, or where it runs a shared layer again
    and again, one for each time. It is the first stack, or the second where `encoded` are the
    states that the layers of the first one give.

    Only the first layer of a stack computes: what a model hands to the others, but for the states,
    does not depend on those in front.

    Raises FamilyError for several layers that are shared.
    """
    found: list[Pass] = []

    def record(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if layer is layers[0]:
            found.append(Pass(states_of(args, named), []))
        found[-1].calls.append(LayerCall(*with_states(args, named, None)))

    takes = inspect.signature(type(model).forward).parameters
    inputs = {**batch, "use_cache": False} if "use_cache" in takes else batch
    wanted = sites.stacks[0 if encoded is None else 1]
    with ExitStack() as stack:
        if encoded is not None:
            before = _layers(model, sites, sites.stacks[0])
            stack.enter_context(_giving(before[0], encoded))
            stack.enter_context(_only_the_first(before))
        layers = _layers(model, sites, wanted)
        for layer in layers:
            hook = layer.register_forward_pre_hook(record, with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(_only_the_first(layers))
        run(model, inputs)
    if len(found) > 1 and len(layers) > 1:
        raise FamilyError(
            f"expected one layer that {wanted.architecture.model_type} runs again and again, got "
            f"{len(layers)} that it runs in turns"
        )
    return found


def _layers(model: nn.Module, sites: Sites, stack: Stack) -> list[nn.Module]:
    return [sites.layer(model, stack.first + place) for place in range(len(stack.layers))]


@contextmanager
def _giving(layer: nn.Module, states: Tensor) -> Iterator[None]:
    """Let a layer give these states inside the block."""
    hook = layer.register_forward_hook(lambda _, args, output: with_states_behind(output, states))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _only_the_first(layers: list[nn.Module]) -> Iterator[None]:
    """Let the first of `layers` compute inside the block, and the others hand on what it gives."""
    behind: list[Any] = []
    first, *others = layers
    with ExitStack() as stack:
        stack.enter_context(outputs_of(first, behind.append))
        for layer in others:
            stack.enter_context(_instead_of_forward(layer, lambda *_, **__: behind[0]))
        yield


@contextmanager
def _instead_of_forward(layer: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """Let a layer do nothing but `call` inside the block."""
    before = layer.__dict__.get("forward")  # accelerate's hooks leave one there
    layer.forward = call
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


@contextmanager
def outputs_of(module: nn.Module, keep: Callable[[Tensor], object]) -> Iterator[None]:
    """Hand every output of `module` to `keep` inside the block."""
    hook = module.register_forward_hook(lambda _, args, output: keep(output) and None)
    try:
        yield
    finally:
        hook.remove()


def input_of(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """The first input that `module` gets in `call`, which is not run any further."""
    inputs: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        raise _Stop

    hook = module.register_forward_pre_hook(stop)
    try:
        call()
    except _Stop:
        pass
    finally:
        hook.remove()
    return inputs[0]
