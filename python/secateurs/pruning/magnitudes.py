"""Magnitudes of heads and neurons: the size of the weights that each of them owns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.plan import Site


def head_magnitudes(model: nn.Module, sites: Sites, site: Site) -> Tensor:
    """The root mean square of what each query head of an attention owns, `[H]` float64: rows of q,
    k and v (its share of them where key/value heads are shared) and columns of the output
    projection, each linear weighing the same."""
    (heads,) = site.shape
    parts = []
    for linear in sites.sublayer(site).linears:
        weight = squares(model, sites, site.layer, linear.role)
        owned = weight if linear.columns == "hidden" else weight.T
        count = sites.layers[site.layer].kv_heads if linear.rows == "kv_heads" else heads
        parts.append(owned.reshape(count, -1).mean(1).repeat_interleave(heads // count))
    return torch.stack(parts).mean(0).sqrt()


def neuron_magnitudes(model: nn.Module, sites: Sites, site: Site) -> Tensor:
    """The same of each neuron's rows of up and gate and its column of down, `[F]`."""
    roles = ("up", "gate") if sites.layers[site.layer].gated else ("up",)
    parts = [squares(model, sites, site.layer, role).mean(1) for role in roles]
    return torch.stack([*parts, squares(model, sites, site.layer, "down").mean(0)]).mean(0).sqrt()


def squares(model: nn.Module, sites: Sites, index: int, role: str) -> Tensor:
    """The squared weights `[N, K]` of one linear, float64."""
    return sites.linear(model, index, role).weight.detach().double().square().contiguous()
