"""What tests of CPU attention share: operands, and the comparison with the float64 formula."""

from __future__ import annotations

import math

import torch
from support import oracles

from secateurs.ops import attention
from secateurs.ops._backends import cpu

# A bfloat16 rounds by at most 2^-8, evenly spread: 2^-8 / sqrt(3) in the root mean square. Weights
# are rounded where products are of bfloat16, then the output: two independent roundings.
ROUNDING = 2**-8 / math.sqrt(3)
TOLERANCE = {
    torch.float32: oracles.TOLERANCE["float32"],
    torch.bfloat16: math.sqrt(2) * ROUNDING,
}
ROUNDED_ONCE = ("portable", "avx2", "avx_vnni", "avx512", "avx512_vnni")  # products in float
WITH_LONG_PRODUCTS = next(isa for isa in cpu.isas() if isa in ROUNDED_ONCE)


def qkv(b=2, hq=3, hkv=3, tq=9, tk=9, d=16, dtype=torch.float32):
    q, k, v = torch.randn(b, hq, tq, d), *torch.randn(2, b, hkv, tk, d)
    return tuple(t.to(dtype) for t in (q, k, v))


def tolerance(dtype):
    once = dtype == torch.bfloat16 and cpu.isa() in ROUNDED_ONCE
    return ROUNDING if once else TOLERANCE[dtype]


def truth_of(q, k, v, mask=None, **kwargs):
    mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
    return oracles.attention(q.float(), k.float(), v.float(), mask=mask, **kwargs)


def assert_exact(*args, **kwargs):
    y = attention(*args, **kwargs)
    assert y.is_contiguous()
    assert y.dtype == args[0].dtype
    truth = truth_of(*args, **kwargs)
    assert oracles.relative_error(y.float(), truth) < tolerance(y.dtype)


def guarded(x):
    """The same values and layout as a contiguous tensor, with NaN on both sides of the memory."""
    page = 4096
    memory = torch.full((x.numel() + 2 * page,), torch.nan, dtype=x.dtype)
    inside = memory[page:-page].view(x.shape)
    inside.copy_(x)
    return inside
