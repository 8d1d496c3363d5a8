"""How an operation becomes known to torch: a schema, one implementation for all devices, shapes,
gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateurs.ops._dispatch import Op

_LIBRARY = torch.library.Library("secateurs", "FRAGMENT")


def register(
    op: Op, schema: str, shape: Callable[..., Tensor], reference: Callable[..., Tensor] | None
) -> Any:
    """Register `op` under `secateurs::<name>` and return what calls it.

    `shape` returns an uninitialised output. Gradients are those of `reference`, which the backward
    pass runs again: no kernel has to be differentiable, and no gradient is lost. Without a
    reference the operation is one for callers who record no gradients.
    """
    _LIBRARY.define(f"{op.name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(op.name, op.run, "CPU")
    _LIBRARY.impl(op.name, op.run, "CUDA")
    qualified = f"secateurs::{op.name}"

    def fake(*args: Any) -> Tensor:
        op.check(*args)
        return shape(*args)

    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if reference is not None:
        _differentiate(qualified, reference)
    return _caller(getattr(torch.ops.secateurs, op.name).default)


def _caller(dispatched: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What calls an operation, and costs less where no gradients are recorded.

    Going through what would remember a call's inputs takes as long as a small product. A graph that
    is being traced must see nothing but the operation.
    """

    def call(*args: Any) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return dispatched(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return dispatched(*args)

    return call


def _differentiate(qualified: str, reference: Callable[..., Tensor]) -> None:
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
            output = reference(*inputs)
        wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
        grads = iter(torch.autograd.grad(output, wanted, grad))
        return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad)

    torch.library.register_autograd(qualified, backward, setup_context=remember, lib=_LIBRARY)
