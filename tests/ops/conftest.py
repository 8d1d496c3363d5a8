"""What the tests of operations share: random weights, and every instruction set this CPU runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from secateurs.ops import use_backend
from secateurs.ops._backends import cpu


@pytest.fixture(params=cpu.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU runs in turn, with the CPU backend forced."""
    with use_backend("cpu"), cpu.use_isa(request.param):
        assert cpu.isa() == request.param
        yield request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What CPU attention computes in."""
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_weight(
    n: int,
    k: int,
    block: tuple[int, int] = (32, 32),
    density: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> SimpleNamespace:
    """A block-sparse weight `[n, k]`; `block = (bn, k)` at density 1 is a packed dense one, n of
    any size. Blocks of a bfloat16 weight come input by input; `paired` turns them."""
    bn, bk = block
    rows, columns = -(-n // bn), k // bk
    keep = torch.rand(rows, columns) < density
    values = torch.randn(int(keep.sum()), bk, bn, dtype=dtype) * max(k * density, 1) ** -0.5
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[1:] = keep.sum(1).cumsum(0)
    return SimpleNamespace(
        values=values,
        indptr=indptr,
        indices=keep.nonzero()[:, 1].to(torch.int32),
        shape=(n, k),
    )


def paired(weight: SimpleNamespace) -> SimpleNamespace:
    """A random weight in bfloat16 and in pairs of inputs, as CPUs multiply it; a block of all
    inputs grows to a multiple of 32 of them."""
    values, (_, k) = weight.values.bfloat16(), weight.shape
    nnz, bk, bn = values.shape
    grown = -(-bk // 32) * 32 if bk == k else bk
    pairs = values.new_zeros(nnz, grown // 2, bn, 2)
    for i in range(bk):
        pairs[:, i // 2, :, i % 2] = values[:, i]
    return SimpleNamespace(**{**vars(weight), "values": pairs})


def code_weight(
    n: int, k: int, block: tuple[int, int] | None = None, density: float = 0.5
) -> SimpleNamespace:
    """A random weight of codes `[n, k]` and random scales, dense without a `block`, each code as
    likely as another. Where inputs are filled up, and outputs, codes stand too: nobody is to see
    them."""
    bn, bk = block or (32, -(-k // 32) * 32)
    rows, columns = -(-n // bn), -(-k // bk)
    keep = torch.rand(rows, columns) < (1 if block is None else density)
    indptr = torch.zeros(rows + 1, dtype=torch.int32)
    indptr[1:] = keep.sum(1).cumsum(0)
    return SimpleNamespace(
        values=torch.randint(1, 256, (int(keep.sum()), bk // 4, bn, 4), dtype=torch.uint8),
        scales=(0.5 + torch.rand(n)) / 100,
        indptr=indptr,
        indices=keep.nonzero()[:, 1].to(torch.int32),
        shape=(n, k),
    )


def code_vectors(
    n: int,
    k: int,
    v: int = 32,
    share: float = 0.5,
    codes: tuple[int, int] = (-127, 128),
    chosen: torch.Tensor | None = None,
) -> SimpleNamespace:
    """A random weight of codes `[n, k]` from `codes` on, and random scales, in which `v`
    neighbouring outputs keep the inputs `chosen` `[n / v, k]`, or a random `share` of them. Where
    words are filled up, places are random, too: nobody is to see them."""
    chosen = torch.rand(n // v, k) < share if chosen is None else chosen
    groups, values, places, ends = -(-k // 64), [], [], [0]
    for row in chosen:
        for g in range(groups):
            kept = row[64 * g : 64 * g + 64].nonzero()[:, 0]
            words = -(-len(kept) // 4)
            place = torch.randint(64, (4 * words,))
            place[: len(kept)] = kept
            value = torch.zeros(4 * words, v, dtype=torch.int8)
            value[: len(kept)] = torch.randint(*codes, (len(kept), v)).to(torch.int8)
            places.append(place.to(torch.uint8).view(words, 4))
            values.append(value.view(words, 4, v).transpose(1, 2))
            ends.append(ends[-1] + words)
    sums = [value.sum((0, 2), dtype=torch.int32) for value in values]
    return SimpleNamespace(
        values=torch.cat([torch.zeros(0, v, 4, dtype=torch.int8), *values]).contiguous(),
        scales=(0.5 + torch.rand(n)) / 100,
        places=torch.cat([torch.zeros(0, 4, dtype=torch.uint8), *places]),
        indptr=torch.tensor(ends, dtype=torch.int32),
        starts=-128 * torch.stack([torch.zeros(v, dtype=torch.int32), *sums])[1:],
        shape=(n, k),
    )
