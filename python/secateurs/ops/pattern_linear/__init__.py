"""y = act(x W^T + bias) * gate + residual, with W regular in its zeros: vector N:M, or a library of
block patterns."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.epilogue import check_epilogue, check_inputs
from secateurs.ops._core.gpu import triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.pattern_linear import cpu, cuda, reference


class Vector(Protocol):
    """A weight as `secateurs.formats.VectorWeight` describes it."""

    values: Tensor  # [N / v, kept, v], or [N / v, ceil(kept / s), v, s]
    columns: Tensor  # int32 [N / v, kept]
    places: Tensor | None  # of 2:4, int32 [N / 16, K / 32, 8, 2]
    shape: tuple[int, int]


class Library(Protocol):
    """A weight as `secateurs.formats.LibraryWeight` describes it."""

    values: Tensor  # [N / p, K / q, ones]
    codes: Tensor  # uint8 [N / p, K / q]
    library: Tensor  # bool [L, p, q]
    shape: tuple[int, int]


def pattern_linear(
    x: Tensor,
    weight: Vector | Library,
    bias: Tensor | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + bias) * gate + residual, shape `[..., N]`.

    Of a vector weight only what is stored is multiplied: an infinity or NaN in `x` does not pass
    through a pruned one. Through a library's blocks, and through the reference, which expand the
    weight, it does.

    Args:
        x: `[..., K]`.
        weight: its indices are trusted: validate them where they are made.
        bias: `[N]`.
        activation: one of `ACTIVATIONS`.
        gate: `[..., N]`, multiplies what the activation returns.
        residual: `[..., N]`, added last.

    Raises:
        OperandError: the tensors do not fit together, or the activation is unknown.
        BackendError: the backend that is forced refuses the call.
    """
    return _call(*arguments(x, weight, bias, activation, gate, residual))


def arguments(
    x: Tensor,
    weight: Any,
    bias: Tensor | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Any, ...]:
    """The same call in the order of the schema."""
    check_inputs(x, weight.shape)
    library = getattr(weight, "library", None)
    if library is not None:
        index = weight.codes
    elif (index := getattr(weight, "places", None)) is None:
        index = weight.columns
    return (x, weight.values, index, library, bias, activation, gate, residual)


def outputs(values: Tensor, library: Tensor | None) -> int:
    """N of a packed weight."""
    return values.shape[0] * (values.shape[2] if library is None else library.shape[1])


def inputs_together(device: torch.device, dtype: torch.dtype) -> int:
    """How many inputs of an output a device's kernels want side by side in a `VectorWeight`."""
    return cpu.inputs_together(dtype) if torch.device(device).type == "cpu" else 1


def sparse_tensor_cores(device: torch.device, shape: tuple[int, int]) -> bool:
    """Whether a device's kernels want a 2:4 weight `[N, K]` as a `VectorWeight` of single outputs
    rather than as a library, which they take for few rows of `x` only."""
    return torch.device(device).type == "cuda" and cuda.takes_two_four(*shape)


def check(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    library: Tensor | None,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raise OperandError, in a sentence, unless the operands fit together."""
    if library is None and index.dim() == 4:
        _check_places(x, values, index)
        check_epilogue(x, values.shape[0], values, (index,), bias, activation, gate, residual)
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
    n = outputs(values, library)
    check_epilogue(x, n, values, (index, library), bias, activation, gate, residual)


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


def flops(x: Tensor, values: Tensor, index: Tensor, library: Tensor | None, *_: object) -> int:
    """Of the entries that are stored; values beside columns may be padded."""
    padded = library is None and index.dim() == 2
    stored = index.numel() * values.shape[2] if padded else values.numel()
    return 2 * x.shape[:-1].numel() * stored


OP = Op(
    "pattern_linear",
    check,
    cuda.BACKEND,
    triton_backend("pattern_linear"),
    cpu.BACKEND,
    reference.BACKEND,
)
_call = register(
    OP,
    "(Tensor x, Tensor values, Tensor index, Tensor? library, Tensor? bias, str activation, "
    "Tensor? gate, Tensor? residual) -> Tensor",
    lambda x, values, index, library, *_: x.new_empty((*x.shape[:-1], outputs(values, library))),
    reference.pattern_linear,
    flops,
)
