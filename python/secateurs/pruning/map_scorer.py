"""The network of SMP that scores attention maps, and the file it is kept in."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.errors import CheckpointError
from secateurs.files import written_whole

SIDE = 128  # of a map, in tokens
CHANNELS = 8


class MapScorer(nn.Module):
    """Scores `[N, 2]` between 0 and 2 of attention maps `[N, 1, 128, 128]`."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [1, *(CHANNELS * 2**i for i in range(5))]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(sizes)):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False))
            if i:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(sizes[-1], 2, 4, bias=False))
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            for module in self.layers:
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                    mean, weight = float(isinstance(module, nn.BatchNorm2d)), module.weight
                    weight.copy_(mean + 0.01 * torch.randn(weight.shape, generator=generator))

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.layers(maps)
        return 2 * logits.flatten(1).sigmoid()


def square_maps(attention: Tensor, mask: Tensor) -> Tensor:
    """Maps `[B, H, T, T]`, zero in rows of padding `mask` `[B, T]`, cropped or filled up with zeros
    to `[B, H, 128, 128]`."""
    maps = attention * mask[:, None, :, None].to(attention)
    maps = maps[..., :SIDE, :SIDE]
    short = SIDE - maps.shape[-1]
    return F.pad(maps, (0, short, 0, short))


def save_scorer(scorer: MapScorer, path: str | Path) -> None:
    """Write what `artifact` reads. Raises CheckpointError if it cannot be written."""
    state = {name: value.cpu().contiguous() for name, value in scorer.state_dict().items()}
    try:
        with written_whole(path) as scratch:
            save_file(state, scratch, metadata={"secateurs": "smp"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a scorer to {path}: {error}") from error


def load_scorer(path: str | Path) -> MapScorer:
    """Read what `save_scorer` wrote. Raises CheckpointError for any other file."""
    scorer = MapScorer(torch.Generator())
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("secateurs")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if kind != "smp":
            raise CheckpointError(f"expected a scorer saved by SMP in {path}, got {kind}")
        scorer.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot read a scorer from {path}: {error}") from error
    return scorer.eval()
