"""What exported models run in: a file each, with how a program is written for it and opened; a row
each here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.export import ExportedProgram

from secateurs.integrations.runtimes import onnx, openvino, torch_program
from secateurs.measurement.environment import check_installed

Call = Callable[..., Tensor]


class Runtime(Protocol):
    """The names in the module of a runtime, which imports its packages only when it is used."""

    PACKAGES: Sequence[str]
    """That are imported; pip installs them by the same names."""

    def write(self, program: ExportedProgram, names: Sequence[str], output: str, out: Path) -> Path:
        """Write a program of inputs by `names` and one `output` into the folder `out`, and return
        the file to open."""

    def opened(self, path: Path, output: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """A callable of inputs by name, on the CPU and as many threads as torch has."""


RUNTIMES: dict[str, Runtime] = {"torch": torch_program, "onnx": onnx, "openvino": openvino}


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises BackendError where one of its packages is not installed."""
    row = RUNTIMES[name]
    check_installed(row.PACKAGES, f"to export to {name}")
    return row
