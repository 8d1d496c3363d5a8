"""Is this machine fast for pruned models, and what is in the way: for `secateurs doctor`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from statistics import median
from typing import Any

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import Tensor
from torch.nn.functional import linear

from secateurs import files, ops
from secateurs.formats import BlockSparseWeight, Int8Weight
from secateurs.measurement.environment import package_version, usable_cores
from secateurs.measurement.peers import installed
from secateurs.measurement.timing import interleave, summarised
from secateurs.ops._backends import cpu

FINE, NOTE, PROBLEM = "fine", "note", "problem"
SHAPE = (1024, 384, 1536)  # M, K, N: a feed-forward layer of MiniLM, 8 sentences of 128 tokens
NOISY = 0.25  # of the median, between the 20th and the 80th percentile
BOUND = ("torch", "transformers")  # packages whose versions must be ones that were tried


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, how it is, and what to do about it."""

    level: str
    subject: str
    sentence: str


@dataclass(frozen=True)
class Rate:
    """How fast one linear ran here: multiply-adds count twice."""

    name: str
    ms: float
    gops: float
    spread: float
    """Between the 20th and the 80th percentile, over the median."""


def rates(min_time: float = 1.0) -> list[Rate]:
    """Time a dense linear and one with half of its blocks, in each precision, all in turns.

    Args:
        min_time: at least this many seconds in all.
    """
    rows, inputs, outputs = SHAPE
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=random)
    weight = torch.randn(outputs, inputs, generator=random)
    calls = dict(_linears(x, weight))
    with torch.inference_mode():
        for call in calls.values():
            call()
        samples = interleave(
            [*calls.values()], torch.device("cpu"), min_repeats=10, min_time=min_time
        )
    return [_rate(name, taken) for name, taken in zip(calls, samples, strict=True)]


def _linears(x: Tensor, weight: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    inputs = weight.shape[1]
    checkerboard = torch.arange(weight.shape[0] // 32)[:, None] + torch.arange(inputs // 32)
    keep = checkerboard % 2 == 0
    yield "torch fp32", partial(linear, x, weight)
    narrow_x, narrow_weight = x.bfloat16(), weight.bfloat16()
    yield "torch bf16", partial(linear, narrow_x, narrow_weight)
    # A dense weight in codes is one block per row of blocks, as convert packs it.
    for part, kept, code_block in (("dense", torch.ones_like(keep), inputs), ("half", keep, 32)):
        wide = BlockSparseWeight.pack(weight, kept)
        narrow = BlockSparseWeight.pack(narrow_weight, kept)
        codes = Int8Weight.pack(weight, kept if code_block == 32 else None, (32, code_block))
        yield f"{part} fp32", partial(ops.block_sparse_linear, x, wide)
        yield f"{part} bf16", partial(ops.block_sparse_linear, narrow_x, narrow)
        yield f"{part} int8", partial(ops.int8_linear, x, codes)


def _rate(name: str, samples: list[float]) -> Rate:
    timing = summarised([samples], torch.device("cpu")).timing
    operations = 2 * math.prod(SHAPE) * (0.5 if name.startswith("half") else 1)
    spread = (timing.ms_p80 - timing.ms_p20) / timing.ms
    return Rate(name, timing.ms, operations / timing.ms / 1e6, spread)


def findings(measured: list[Rate]) -> list[Finding]:
    """Look at kernels, threads, noise, packages, peers, GPU and cache."""
    return [
        *_kernels(),
        *_precisions({rate.name: rate for rate in measured}),
        *_threads(),
        *_noise(measured),
        *_packages(),
        *_peers(),
        *_gpu(),
        *_cache(),
    ]


def _kernels() -> Iterator[Finding]:
    reason = ops.build_info()["cpu"].get("missing")
    if reason:
        yield Finding(
            PROBLEM,
            "kernels",
            f"the CPU kernels are missing ({reason}): nothing here will be faster; install again "
            "where a C++ compiler is found",
        )
        return
    name = cpu.isa()
    if name in ("portable", "avx2"):
        yield Finding(
            NOTE, "kernels", f"they run by {name}: removed parts save time, formats save less"
        )
    else:
        yield Finding(FINE, "kernels", f"they run by {name}, the best of this machine and build")
    if "SECATEURS_CPU_ISA" in os.environ:
        yield Finding(NOTE, "kernels", "SECATEURS_CPU_ISA holds them to that instruction set")


def _precisions(rate: dict[str, Rate]) -> Iterator[Finding]:
    for precision in ("bf16", "int8"):
        gain = rate["dense fp32"].ms / rate[f"dense {precision}"].ms
        sentence = f"a dense linear of ours is {gain:.1f}x as fast as in fp32"
        if gain < 1.1:
            yield Finding(NOTE, precision, f"{sentence}: it saves memory here, not time")
        else:
            yield Finding(FINE, precision, sentence)
    for precision in ("fp32", "bf16", "int8"):
        gain = rate[f"dense {precision}"].ms / rate[f"half {precision}"].ms
        yield Finding(
            FINE if gain >= 1.2 else NOTE,
            precision,
            f"half of a linear's blocks removed makes it {gain:.1f}x as fast",
        )


def _threads() -> Iterator[Finding]:
    threads, usable = torch.get_num_threads(), usable_cores()
    if usable is not None and threads > usable:
        yield Finding(
            PROBLEM,
            "threads",
            f"torch runs {threads} on {usable} usable cores: set OMP_NUM_THREADS={usable}",
        )
    elif usable is not None and threads < usable:
        yield Finding(NOTE, "threads", f"torch runs {threads} of {usable} usable cores")
    else:
        yield Finding(FINE, "threads", f"torch runs {threads}, one for each usable core")


def _noise(measured: list[Rate]) -> Iterator[Finding]:
    spread = median(rate.spread for rate in measured)
    sentence = f"times of one linear spread by {spread:.0%} around their median"
    if spread > NOISY:
        yield Finding(NOTE, "noise", f"{sentence}: close other work before you measure models")
    else:
        yield Finding(FINE, "noise", sentence)


def _packages() -> Iterator[Finding]:
    for package, bounds in _requirements().items():
        version = package_version(package)
        if version is None:
            yield Finding(PROBLEM, package, f"it is not installed; expected {bounds}")
        elif not bounds.contains(version.partition("+")[0], prereleases=True):
            yield Finding(
                PROBLEM, package, f"{version} was not tried; expected {bounds}, see pip install"
            )
        else:
            yield Finding(FINE, package, f"{version}, tried ({bounds})")


def _requirements() -> dict[str, SpecifierSet]:
    """The bounds of torch and transformers that the installed package declares."""
    try:
        declared = map(Requirement, metadata.requires("secateurs") or [])
    except metadata.PackageNotFoundError:  # run from a checkout
        return {}
    return {each.name: each.specifier for each in declared if each.name in BOUND}


def _peers() -> Iterator[Finding]:
    names = ", ".join(installed())
    yield Finding(FINE, "peers", f"runtimes to compare with that are installed: {names}")


def _gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        return
    reason = ops.build_info()["cuda"].get("missing")
    if reason:
        yield Finding(NOTE, "gpu", f"our CUDA kernels are missing ({reason}); Triton's may serve")
    yield Finding(NOTE, "gpu", "no GPU kernel of ours was timed yet: measure before you rely on it")


def _cache() -> Iterator[Finding]:
    folder = files.cache_folder()
    if folder is None:
        yield Finding(
            NOTE, "cache", "no home directory: set SECATEURS_CACHE to keep measured times"
        )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if writable:
        yield Finding(FINE, "cache", f"measured times are kept in {folder}")
    else:
        yield Finding(
            NOTE, "cache", f"{folder} cannot be written: set SECATEURS_CACHE to keep measured times"
        )


def report(measured: list[Rate], found: list[Finding]) -> dict[str, Any]:
    """Return both as plain JSON."""
    return {
        "shape": list(SHAPE),
        "rates": [vars(rate) for rate in measured],
        "findings": [vars(finding) for finding in found],
    }
