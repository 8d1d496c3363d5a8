"""Launch configurations: a table of data per architecture, and what `autotune` found faster on this
very device.

Tuned choices are kept in `files.cache_folder`, one JSON file per device name and Triton version, so
that they never outlive either.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateurs import files
from secateurs.errors import BackendError
from secateurs.ops._core import gpu

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Config:
    """How one kernel is launched.

    Attributes:
        block_m: rows of the output (queries) per program.
        step: how far the inner loop goes at once: inputs of a linear, keys of attention.
        warps: per program.
        stages: how many steps are in flight.
        descriptors: operands come by tensor descriptors, which the copy engine of sm_90 and newer
            reads, where the kernel can and they are aligned; else by addresses.
        specialised: some warps copy while others multiply (sm_100, with descriptors: Triton 3.9
            fails to build it for sm_90).
    """

    block_m: int
    step: int
    warps: int
    stages: int
    descriptors: bool = False
    specialised: bool = False


class Table:
    """The configurations of one kernel: `rows[architecture][key]`; the first part of a key is the
    kind of call. `descriptors`: the kernel can take its operands by them."""

    def __init__(
        self, kernel: str, rows: Mapping[int, Mapping[Key, Config]], descriptors: bool = False
    ) -> None:
        self.kernel, self.rows, self.descriptors = kernel, rows, descriptors

    def choose(self, device: torch.device, key: Key) -> Config:
        """Return what was tuned for `key` on this device, else the table's own row."""
        if (trial := _trial.get()) is not None:
            return trial
        name = _name(self.kernel, key)
        return _tuned(device).get(name) or self.rows[gpu.architecture(device)][key]

    def candidates(self, device: torch.device, key: Key) -> Iterable[Config]:
        """Return the architecture's configurations for calls of the same kind, and their
        neighbours."""
        architecture = gpu.architecture(device)
        rows = self.rows[architecture].items()
        found = dict.fromkeys(config for name, config in rows if name[0] == key[0])
        copies = [{"descriptors": False}]
        if self.descriptors and architecture >= 90:
            copies.append({"descriptors": True})
        if self.descriptors and architecture >= 100:
            copies.append({"descriptors": True, "specialised": True})
        for config in list(found):
            for m in {config.block_m, max(16, config.block_m // 2), config.block_m * 2}:
                for warps, stages, copy in product((4, 8), (2, 3, 4, 5), copies):
                    found[Config(m, config.step, warps, stages, **copy)] = None
        return found


@contextmanager
def trial(config: Config) -> Iterator[None]:
    """Launch every kernel inside the block with `config`."""
    token = _trial.set(config)
    try:
        yield
    finally:
        _trial.reset(token)


def autotune(op: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Config:
    """Time `op(*args, **kwargs)` under every candidate configuration of its Triton kernel, keep the
    fastest on disk for this kind of call on this kind of device, and return it.

    Args:
        op: an operation of `secateurs.ops`; its arguments follow.

    Raises:
        BackendError: the Triton backend refuses the call, or no candidate fits the device.
    """
    module = sys.modules[op.__module__]
    operands = module.arguments(*args, **kwargs)
    reason = gpu.triton_backend(module.OP.name).refuse(operands)
    if reason is not None:
        raise BackendError(f"expected a call that Triton runs, to tune for it: {reason}")
    kernels = importlib.import_module(f"{op.__module__}.triton")
    unfit = importlib.import_module("secateurs.ops._backends.triton").UNFIT
    table, key, device = kernels.TABLE, kernels.key(operands), operands[0].device
    times: dict[Config, float] = {}
    for config in table.candidates(device, key):
        with trial(config), suppress(*unfit):
            times[config] = _milliseconds(lambda: kernels.run(operands))
    if not times:
        name = torch.cuda.get_device_name(device)
        raise BackendError(f"no launch configuration of {table.kernel} fits {name}")
    best = min(times, key=times.__getitem__)
    tuned = _tuned(device)
    tuned[_name(table.kernel, key)] = best
    # What another process has tuned meanwhile is kept too.
    found = {**_kept(device), **tuned}
    files.write_table(_file(device), {name: asdict(config) for name, config in found.items()})
    return best


_trial: ContextVar[Config | None] = ContextVar("secateurs_trial", default=None)


def _milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    call()  # compiles
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(sorted(times)[repeats // 2])


def _name(kernel: str, key: Key) -> str:
    return "/".join((kernel, *map(str, key)))


@cache
def _tuned(device: torch.device) -> dict[str, Config]:
    """Return what was tuned on this device before this process, and by it."""
    return _kept(device) if device.type == "cuda" else {}


def _kept(device: torch.device) -> dict[str, Config]:
    """Return the configurations in the file of a device, and nothing else that may stand in it."""
    rows = files.read_table(_file(device))
    return {name: Config(**row) for name, row in rows.items() if _is_config(row)}


def _is_config(row: object) -> bool:
    """Tell whether a JSON value is a Config as `asdict` makes it, of numbers a kernel can have."""
    if not isinstance(row, dict) or row.keys() != {field.name for field in fields(Config)}:
        return False
    numbers = [row[name] for name in ("block_m", "step", "warps", "stages")]
    switches = [row["descriptors"], row["specialised"]]
    return (
        all(type(number) is int and 0 < number <= 1024 for number in numbers)
        and all(number.bit_count() == 1 for number in numbers[:3])  # powers of two
        and all(type(switch) is bool for switch in switches)
    )


def _file(device: torch.device) -> Path | None:
    folder = files.cache_folder()
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name(device))
    return None if folder is None else folder / f"{name}-triton-{version('triton')}.json"
