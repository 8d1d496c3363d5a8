"""Make an operation known to torch: its schema, one implementation for all devices, shapes,
gradients, FLOPs, and who may be watching."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from secateurs.errors import BackendError
from secateurs.ops._core.dispatch import AUTO, Op, forced_backend
from secateurs.ops._core.operands import Record, schema
from secateurs.ops._core.recording import recording, wants_torch_operations

R = TypeVar("R", bound=Record)

_LIBRARY = torch.library.Library("secateurs", "FRAGMENT")


def register(
    op: Op[R],
    record: Callable[..., R],
    reference: Callable[[R], Tensor],
    flops: Callable[[R], int],
    differentiable: bool = True,
) -> Callable[[R], Tensor]:
    """Register `op` under `secateurs::<name>` and return what calls it with a record of operands.

    `record` is the NamedTuple of the operands: its fields are the schema, its `new_output` the fake
    kernel. Gradients are those of `reference`, which the backward pass runs again: no kernel has to
    be differentiable, and no gradient is lost. An operation that is not `differentiable` is one for
    callers who record no gradients. `flops` counts what a call computes, two for a multiply-add, as
    `FlopCounterMode` counts torch's own.
    """

    # As `record` does, without a frame of Python.
    make: Callable[[tuple[Any, ...]], R] = partial(tuple.__new__, record)  # type: ignore[type-var, arg-type]

    def run(*args: Any) -> Tensor:
        return op.run(make(args))

    def fake(*args: Any) -> Tensor:
        operands = record(*args)
        op.check(operands)
        return operands.new_output()

    _LIBRARY.define(f"{op.name}{schema(record)}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(op.name, run, "CPU")
    _LIBRARY.impl(op.name, run, "CUDA")
    qualified = f"secateurs::{op.name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    packet = getattr(torch.ops.secateurs, op.name)
    torch.library.register_vmap(qualified, _one_by_one(packet.default), lib=_LIBRARY)
    if differentiable:
        _differentiate(qualified, record, reference)
    register_flop_formula(packet, get_raw=True)(lambda *args, **_: flops(record(*args)))
    return _caller(op, packet.default, reference)


def _one_by_one(dispatched: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """Return how `vmap` batches a call that is in a graph already."""

    def batched(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        calls = (_select(args, in_dims, i) for i in range(info.batch_size))
        return torch.stack([dispatched(*call) for call in calls]), 0

    return batched


def _select(operand: Any, dim: Any, i: int) -> Any:
    """Return the part of an operand, or of a list of them, that is number `i` of its batch."""
    if isinstance(dim, list | tuple):
        return [_select(each, d, i) for each, d in zip(operand, dim, strict=True)]
    return operand if dim is None else operand.select(dim, i)


def _caller(
    op: Op[R], dispatched: Callable[..., Tensor], reference: Callable[[R], Tensor]
) -> Callable[[R], Tensor]:
    """Return what calls an operation, and costs less where nobody records anything, gradients among
    it.

    Going through what would remember a call's inputs takes as long as a small product.
    """

    def call(operands: R) -> Tensor:
        flat: tuple[Any, ...] = operands  # type: ignore[assignment]
        if recording():
            if wants_torch_operations():
                return _in_torch(op, reference, operands)
            return dispatched(*flat)
        if torch.is_grad_enabled():
            return dispatched(*flat)
        with torch._C._AutoDispatchBelowAutograd():
            return dispatched(*flat)

    return call


def _in_torch(op: Op[R], reference: Callable[[R], Tensor], operands: R) -> Tensor:
    """Run the call in torch's own operations. Raises BackendError where a kernel is forced."""
    forced = forced_backend()
    if forced not in (AUTO, "reference"):
        raise BackendError(
            f"backend {forced!r} refuses {op.name}: torch.jit.trace, ONNX export, torch.func and "
            "forward-mode differentiation take torch's own operations only; the reference has "
            "them, and so has the stock model that export_dense returns"
        )
    with warnings.catch_warnings():
        # Sizes of weights are read as numbers, and are the same in every run.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        op.check(operands)
        return reference(operands)


def _differentiate(
    qualified: str, record: Callable[..., R], reference: Callable[[R], Tensor]
) -> None:
    """Register the gradients of `reference` as those of the operation."""

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [x if isinstance(x, Tensor) else None for x in inputs]
        ctx.save_for_backward(*tensors)
        ctx.constants = [None if isinstance(x, Tensor) else x for x in inputs]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.constants, ctx.needs_input_grad, strict=True)
        with torch.enable_grad():
            inputs = [
                constant if tensor is None else tensor.detach().requires_grad_(needed)
                for tensor, constant, needed in saved
            ]
            output = reference(record(*inputs))
        wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
        grads = iter(torch.autograd.grad(output, wanted, grad))
        return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad)

    torch.library.register_autograd(qualified, backward, setup_context=remember, lib=_LIBRARY)
