"""The operands of `pattern_linear`, and whether they fit together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.epilogue import check_epilogue


class Operands(NamedTuple):
    """One call of `pattern_linear`, in the order of its schema."""

    x: Tensor  # [..., K]
    values: Tensor  # [N / v, kept, v] or [N / v, kept / s, v, s], or [N / p, K / q, ones]
    indices: Tensor  # int32 [N / v, kept], of 2:4 [N / 16, K / 32, 8, 2], or uint8 [N / p, K / q]
    library: Tensor | None  # bool [L, p, q]
    bias: Tensor | None  # [N]
    activation: str
    multiplier: Tensor | None  # [..., N]
    residual: Tensor | None  # [..., N]

    def out_features(self) -> int:
        """Return N."""
        together = self.values.shape[2] if self.library is None else self.library.shape[1]
        return self.values.shape[0] * together

    def new_output(self) -> Tensor:
        """Return an uninitialised output `[..., N]`."""
        return self.x.new_empty((*self.x.shape[:-1], self.out_features()))


def check(operands: Operands) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    x, values, index, library = operands[:4]
    if library is None and index.dim() == 4:
        _check_places(x, values, index)
        check_epilogue(operands, values.shape[0], values, (index,))
        return
    together = values.shape[3] if values.dim() == 4 and library is None else 1
    if (
        x.dim() < 1
        or values.dim() != (3 if together == 1 else 4)
        or index.dim() != 2
        or values.shape[:2] != (index.shape[0], -(-index.shape[1] // together))
    ):
        raise OperandError(
            "expected x [..., K], values [groups, kept, v] or [groups, kept / s, v, s] and an "
            f"index [groups, kept], got shapes {[tuple(t.shape) for t in (x, values, index)]}"
        )
    if library is None:
        if index.dtype != torch.int32:
            raise OperandError(f"expected int32 columns, got {index.dtype}")
        if index.shape[1] > x.shape[-1]:
            raise OperandError(f"expected at least {index.shape[1]} inputs, got {x.shape[-1]}")
    else:
        if library.dim() != 3 or library.dtype != torch.bool or index.dtype != torch.uint8:
            raise OperandError(
                f"expected a library bool [L, p, q] and uint8 codes, got {library.dtype} "
                f"{tuple(library.shape)} and {index.dtype}"
            )
        if x.shape[-1] != index.shape[1] * library.shape[2]:
            raise OperandError(
                f"expected x [..., {index.shape[1] * library.shape[2]}], got {tuple(x.shape)}"
            )
    check_epilogue(operands, operands.out_features(), operands.values, (index, library))


def _check_places(x: Tensor, values: Tensor, places: Tensor) -> None:
    n, k = values.shape[0], x.shape[-1] if x.dim() else 0
    expected = (n // 16, k // 32, 8, 2)
    if (
        (n % 16, k % 32) != (0, 0)
        or tuple(values.shape) != (n, k // 2, 1)
        or tuple(places.shape) != expected
        or places.dtype != torch.int32
    ):
        raise OperandError(
            "expected x [..., K], values [N, K / 2, 1] and int32 places [N / 16, K / 32, 8, 2], "
            f"got shapes {[tuple(t.shape) for t in (x, values, places)]} and {places.dtype}"
        )


def flops(operands: Operands) -> int:
    """Count the operations on the entries that are stored; values beside columns may be padded."""
    x, values, index, library = operands[:4]
    padded = library is None and index.dim() == 2
    stored = index.numel() * values.shape[2] if padded else values.numel()
    return 2 * x.shape[:-1].numel() * stored
