"""Int8Linear: a linear in codes of 8 bits, packed once for the kernel of `ops.int8_linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.formats import Int8Weight
from secateurs.ops._core.dispatch import forced_backend


class Int8Linear(KernelLinear):
    """y = act(x W^T + bias) * multiplier + residual by our kernel; W is in codes of 8 bits, dense
    or block-sparse, and x is rounded to such codes in each call.

    Args:
        dtype: of everything but the codes and their scales.
    """

    operation = staticmethod(ops.int8_linear)
    indptr: Tensor
    indices: Tensor

    def __init__(
        self,
        weight: Int8Weight,
        bias: Tensor | None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        weight.validate()
        self.values = nn.Buffer(weight.values)
        # As whole numbers: a model that is cast would round them.
        self.scale_bits = nn.Buffer(weight.scales.view(torch.int32))
        self.indptr = nn.Buffer(weight.indptr)
        self.indices = nn.Buffer(weight.indices)
        self.bias = None if bias is None else nn.Buffer(bias.to(dtype))
        self.like = nn.Buffer(weight.scales.new_empty(0, dtype=dtype), persistent=False)
        self.shape, self.activation = weight.shape, activation

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def scales(self) -> Tensor:
        """float32 `[N]`, of each output."""
        return self.scale_bits.view(torch.float32)

    @property
    def weight(self) -> Int8Weight:
        return Int8Weight(self.values, self.scales, self.indptr, self.indices, self.shape)

    def dense(self) -> Tensor:
        """The weight `[N, K]`, zeros where none is stored, in the dtype of the model; with the
        scales it still tells the codes."""
        return super().dense().to(self.dtype)

    def refusal(self) -> str | None:
        """Why nothing would run this where it is, if so; the reference does where it is forced."""
        return None if forced_backend() == "reference" else super().refusal()

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"{self.shape}, int8, block={weight.block}, density={weight.density:.2f}, "
            f"activation={self.activation}"
        )
