"""float16 and bfloat16 on NVIDIA GPUs by our own kernels: vector N:M as dense products of gathered
inputs (csrc/cuda/stacked_linear), 2:4 on the sparse tensor cores (sparse_linear), and libraries of
block patterns for few rows of x (library_linear)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._backends import cuda
from secateurs.ops._core.dispatch import Backend
from secateurs.ops._core.memory import aligned_rows_of, rows_of
from secateurs.ops.pattern_linear.operands import Operands

VECTORS = (16, 32, 64, 128)
FEW = 16  # rows of x that the kernel for libraries takes


def _refuse(operands: Operands) -> str | None:
    x, values, index, library, *_ = operands
    if values.dim() != 3:
        return "it takes the inputs of an output one by one, got several side by side"
    if library is not None:
        reason = _refuse_library(x, values, index, library)
    elif values.shape[2] == 1:
        reason = _refuse_2_4(x, values, index)
    elif values.shape[2] not in VECTORS:
        reason = (
            "it takes 2:4, or 16, 32, 64 or 128 outputs that keep the same inputs, got "
            f"{values.shape[2]}"
        )
    else:
        reason = None
    reason = reason or cuda.refuse(x) or cuda.refuse_unaligned(values=values)
    if reason is None and not index.is_contiguous():
        reason = "it takes contiguous columns or codes"
    return reason


def takes_two_four(n: int, k: int) -> bool:
    """Tell whether tiles of the sparse tensor cores cover a weight `[n, k]`."""
    return n % 16 == 0 and k % 32 == 0


def _refuse_2_4(x: Tensor, values: Tensor, index: Tensor) -> str | None:
    n, kept, _ = values.shape
    if not takes_two_four(n, x.shape[-1]) or kept * 2 != x.shape[-1]:
        return (
            "it takes 2:4 weights of a multiple of 16 outputs by one of 32 inputs, got "
            f"{(n, x.shape[-1])} with {kept} kept"
        )
    if index.dim() == 2:
        return "of every four inputs an output must keep two, their places packed with the weight"
    return None


def _refuse_library(x: Tensor, values: Tensor, codes: Tensor, library: Tensor) -> str | None:
    count, p, q = library.shape
    ones, across = values.shape[2], codes.shape[1]
    if x.numel() > FEW * x.shape[-1]:
        return f"it takes libraries with at most {FEW} rows of x, got {_rows(x)}"
    if 32 % p or 256 % q or count > 16 or ones > 256:
        return f"it takes at most 16 patterns, of 1 to 32 by 1 to 256, got {tuple(library.shape)}"
    if x.shape[-1] % 8 or across * ones % 8 or 256 // q * ones % 8:
        return f"it reads eight weights at a time, got rows of {across} blocks of {ones}"
    return cuda.refuse_unaligned(codes=codes)


def _run(operands: Operands) -> Tensor:
    x, values, index, library, *_ = operands
    y = operands.new_output()
    if not y.numel():
        return y
    groups, kept, v = values.shape
    if library is None and v > 1:
        x = rows_of(x)
        sizes = {"rows": groups, "blocks": groups * kept, "bn": v, "bk": 1, "k": x.shape[1]}
        cuda.run_stacks("vector_linear", x, values, None, index, sizes, operands, y)
        return y
    x = aligned_rows_of(x)
    where, (finish, _kept) = cuda.launch(x), cuda.epilogue(operands, y)
    call = {
        **where,
        **finish,
        "x": x.data_ptr(),
        "x_stride": x.stride(0),
        "k": x.shape[1],
        "values": values.data_ptr(),
    }
    kernels = cuda.kernels()
    problem = {"m": finish["m"], "n": finish["n"], "k": x.shape[1]}
    device = {"device": where["device"], "dtype": where["dtype"]}
    if library is None:
        bm, parts, floats = kernels.cut_sparse_linear(**device, **problem)
        partial = x.new_empty(floats, dtype=torch.float32)
        kernels.sparse_linear(
            **call, kept=index.data_ptr(), bm=bm, parts=parts, partial=partial.data_ptr()
        )
    else:
        library = library.contiguous()
        shape = dict(zip(("patterns", "p", "q"), library.shape, strict=True), ones=v)
        bm, parts, floats = kernels.cut_library_linear(**device, **problem, **shape)
        partial = x.new_empty(floats, dtype=torch.float32)
        kernels.library_linear(
            **call,
            **shape,
            codes=index.data_ptr(),
            library=library.data_ptr(),
            bm=bm,
            parts=parts,
            partial=partial.data_ptr(),
        )
    return y


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


BACKEND = Backend("cuda", _refuse, _run)
