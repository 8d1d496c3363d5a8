"""Running the layers of a stock model one by one, as the model itself calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateurs.architectures.calls import states_behind, states_of, with_states
from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch, run


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


def layer_calls(model: nn.Module, sites: Sites, batch: Batch) -> tuple[Tensor, list[LayerCall]]:
    """The states `[B, T, d]` in front of the first layer on `batch`, and the call of each layer.

    Only the first layer computes: what a model hands to the others, but for the states, does not
    depend on those in front.
    """
    states: list[Tensor] = []
    calls: list[LayerCall] = []
    behind: list[Any] = []  # what the first layer returns

    def record(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not calls:
            states.append(states_of(args, named))
        calls.append(LayerCall(*with_states(args, named, None)))

    def hand_on(*_: Any, **__: Any) -> Any:
        return behind[0]

    takes = inspect.signature(type(model).forward).parameters
    inputs = {**batch, "use_cache": False} if "use_cache" in takes else batch
    first, *others = [sites.layer(model, index) for index in range(len(sites.layers))]
    with ExitStack() as stack:
        for layer in (first, *others):
            hook = layer.register_forward_pre_hook(record, with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(outputs_of(first, behind.append))
        for layer in others:
            stack.enter_context(_instead_of_forward(layer, hand_on))
        run(model, inputs)
    return states[0], calls


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
