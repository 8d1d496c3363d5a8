"""Magnitudes of heads and neurons: the size of the weights that each of them owns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites


def head_magnitudes(model: nn.Module, sites: Sites, index: int) -> Tensor:
    """The root mean square of what each query head of a layer owns, `[H]` float64: rows of q, k and
    v (its share of them where key/value heads are shared) and columns of the output projection,
    each linear weighing the same."""
    shape = sites.layers[index]
    query = squares(model, sites, index, "query").view(shape.heads, -1).mean(1)
    output = squares(model, sites, index, "output").T.reshape(shape.heads, -1).mean(1)
    shared = [
        squares(model, sites, index, role)
        .view(shape.kv_heads, -1)
        .mean(1)
        .repeat_interleave(shape.group)
        for role in ("key", "value")
    ]
    return torch.stack([query, output, *shared]).mean(0).sqrt()


def neuron_magnitudes(model: nn.Module, sites: Sites, index: int) -> Tensor:
    """The same of each neuron's rows of up and gate and its column of down, `[F]`."""
    roles = ("up", "gate") if sites.layers[index].gated else ("up",)
    parts = [squares(model, sites, index, role).mean(1) for role in roles]
    return torch.stack([*parts, squares(model, sites, index, "down").mean(0)]).mean(0).sqrt()


def squares(model: nn.Module, sites: Sites, index: int, role: str) -> Tensor:
    """The squared weights `[N, K]` of one linear, float64."""
    return sites.linear(model, index, role).weight.detach().double().square().contiguous()
