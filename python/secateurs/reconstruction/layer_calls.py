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
    """The states `[B, T, d]` in front of the first layer on `batch`, and the call of each layer."""
    states: list[Tensor] = []
    calls: list[LayerCall] = []

    def record(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not calls:
            states.append(states_of(args, named))
        calls.append(LayerCall(*with_states(args, named, None)))

    takes = inspect.signature(type(model).forward).parameters
    inputs = {**batch, "use_cache": False} if "use_cache" in takes else batch
    with ExitStack() as stack:
        for index in range(len(sites.layers)):
            hook = sites.layer(model, index).register_forward_pre_hook(record, with_kwargs=True)
            stack.callback(hook.remove)
        run(model, inputs)
    return states[0], calls


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
