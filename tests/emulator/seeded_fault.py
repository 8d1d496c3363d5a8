"""What a fault is that is seeded into the CUDA sources, and what many of them name."""

from __future__ import annotations

from dataclasses import dataclass

TILE = "tile.cuh"
WAIT = "ptx::wait_copies<C::STAGES - 2>();"
BARRIER = "ptx::sync_block();"


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a file of csrc/cuda; `cases` is part of the name of those that run.
    `races`: two threads then touch the same memory with nothing to order them."""

    file: str
    old: str
    new: str
    cases: str = ""
    races: bool = False
    silent: bool = False  # a race that leaves the results right, and only ThreadSanitizer sees
    behind: str = ""  # what `old` stands right behind, where it stands in the file more than once
