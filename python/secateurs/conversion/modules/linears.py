"""Linears of a converted layer: dense, or packed for our kernels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from secateurs import ops
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.conversion.modules.part import Linear
from secateurs.formats import BlockSparseWeight


class DenseLinear(Linear):
    """y = act(x W^T + bias) * multiplier + residual by torch's own product, where none of our
    kernels applies."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias.to(weight.dtype))
        self.activation = activation

    def forward(
        self, x: Tensor, multiplier: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        if self.casts:
            x, multiplier, residual = self.own(x), self.own(multiplier), self.own(residual)
        y: Tensor = ops.ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        y = y if multiplier is None else y * multiplier
        return y if residual is None else y + residual

    def dense(self) -> Tensor:
        return self.weight

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, dense, activation={self.activation}"


class PackedLinear(KernelLinear):
    """y = act(x W^T + bias) * multiplier + residual by our kernel; W is packed once, dense or
    block-sparse."""

    operation = staticmethod(ops.block_sparse_linear)
    indptr: Tensor
    indices: Tensor

    def __init__(
        self, weight: BlockSparseWeight, bias: Tensor | None, activation: str = "none"
    ) -> None:
        super().__init__()
        weight.validate()
        self.values = nn.Buffer(weight.values)
        self.indptr = nn.Buffer(weight.indptr)
        self.indices = nn.Buffer(weight.indices)
        self.bias = None if bias is None else nn.Buffer(bias.to(weight.values.dtype))
        self.shape, self.activation = weight.shape, activation

    @property
    def weight(self) -> BlockSparseWeight:
        return BlockSparseWeight(self.values, self.indptr, self.indices, self.shape)

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"{self.shape}, block={weight.block}, density={weight.density:.2f}, "
            f"activation={self.activation}"
        )
