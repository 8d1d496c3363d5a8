"""What units hand on: the inputs of the linears that read heads and neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from secateurs.architectures.linears import LinearView
from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch, mask_of


def reader(model: nn.Module, sites: Sites, name: str) -> LinearView:
    """The linear that reads the units of a site of heads or neurons."""
    site = sites.by_name[name]
    return sites.linear(model, site.layer, sites.sublayer(site).last.role)


@contextmanager
def units_read(
    model: nn.Module,
    sites: Sites,
    names: Iterable[str],
    batch: Batch,
    keep: Callable[[str, Tensor], None],
) -> Iterator[None]:
    """Hand to `keep`, with the site's name, what the units of each site give for the real tokens of
    `batch`, `[M, K]`, whenever the model runs inside the block."""

    def hand_on(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        stack, _place = sites.place(sites.by_name[name].layer)
        mask = mask_of(batch, stack.name)
        states = args[0].detach().flatten(0, -2)
        real = None if mask is None or mask.numel() != len(states) else mask.bool().flatten()
        keep(name, states if real is None else states[real])

    with ExitStack() as stack:
        for name in names:
            module = reader(model, sites, name).module
            stack.callback(module.register_forward_pre_hook(partial(hand_on, name)).remove)
        yield
