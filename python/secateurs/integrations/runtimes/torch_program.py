"""torch alone: a program of torch.export in one file, `torch.export.load("model.pt2").module()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

PACKAGES: Sequence[str] = ("torch",)


def write(program: ExportedProgram, names: Sequence[str], output: str, out: Path) -> Path:
    """Write the program."""
    path = out / "model.pt2"
    torch.export.save(program, path)
    return path


def opened(path: Path, output: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """The program, as a module."""
    module = torch.export.load(path).module()

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            answer: Tensor = module(**batch)
        return answer

    return run
