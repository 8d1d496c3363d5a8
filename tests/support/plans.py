"""Plans of every kind of mask, for tiny models."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from secateurs import AttentionRuleMask, BlockMask, HeadMask, ModuleMask, NeuronMask
from secateurs.plan import Mask
from secateurs.plan.attention_rules import Dense, Global, Local, Sinks, Strided


def gone(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.bool)


def blocks(seed: int, *shape: int) -> BlockMask:
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    keep[1] = False  # a block row without blocks
    return BlockMask(keep, (16, 16))


PLANS = {
    "empty": {},
    "no heads in a layer": {"layers.1.heads": HeadMask(gone(4))},
    "no heads in the first layer": {"layers.0.heads": HeadMask(gone(4))},
    "no neurons in a layer": {"layers.1.neurons": NeuronMask(gone(96))},
    "no attention": {f"layers.{i}.attention": ModuleMask(gone(1)[0]) for i in range(3)},
    "no ffn in the last layer": {"layers.2.ffn": ModuleMask(gone(1)[0])},
    "no middle layer": {"layers.1.layer": ModuleMask(gone(1)[0])},
    "uneven": {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.0.neurons": NeuronMask(torch.arange(96) % 3 == 0),
        "layers.2.neurons": NeuronMask(torch.arange(96) == 95),
    },
    "blocks": {
        "layers.0.query": blocks(1, 4, 4),
        "layers.1.output": blocks(2, 4, 4),
        "layers.1.up": blocks(3, 6, 4),
        "layers.2.down": blocks(4, 4, 6),
    },
    "all blocks gone": {"layers.0.down": BlockMask(gone(24).view(4, 6), (16, 16))},
    "blocks and aligned heads": {
        "layers.0.query": blocks(1, 4, 4),
        "layers.0.heads": HeadMask(torch.tensor([True, True, False, True])),
        "layers.0.output": blocks(5, 4, 4),
    },
    "blocks and neurons that break them": {
        "layers.0.up": blocks(3, 6, 4),
        "layers.0.neurons": NeuronMask(torch.arange(96) % 2 == 0),
    },
    "attention rules": {
        "layers.0.attention_rules": AttentionRuleMask(
            [Local(1), Dense(), Sinks(2) | Local(0), Strided(3)]
        ),
        "layers.0.heads": HeadMask(torch.tensor([True, False, True, True])),
        "layers.1.attention_rules": AttentionRuleMask([Dense(), Sinks(1), Dense(), Dense()]),
        "layers.1.heads": HeadMask(torch.tensor([True, False, True, True])),
        "layers.2.attention_rules": AttentionRuleMask([Sinks(2), Global(1), Local(2), Sinks(0)]),
    },
    "everything": {
        f"layers.{i}.{part}": ModuleMask(gone(1)[0]) for i in range(3) for part in ("layer", "ffn")
    },
}
RULED = [name for name, masks in PLANS.items() if any("rules" in site for site in masks)]


def skip_unless_followed(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    """Skip a test of attention rules on a T5 of transformers before 5.24, where they are
    refused."""
    if any(isinstance(m, AttentionRuleMask) for m in masks.values()) and not model._supports_sdpa:
        pytest.skip("layers of this T5 take no mask each")
