"""Plain torch, any dtype and device, differentiable: what every other backend must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.ops._core.dispatch import Backend
from secateurs.ops.add_norm.operands import Operands


def add_norm(operands: Operands) -> Tensor:
    """Compute the operation as its formula says."""
    x, residual, weight, bias, eps, rms, keep_sum = operands
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    centred = total if rms else total - total.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
    y = y if bias is None else y + bias.to(wide)
    out = torch.stack((total, y)) if keep_sum else y
    return out.to(x.dtype).contiguous()


BACKEND = Backend("reference", refuse=lambda _: None, run=add_norm)
