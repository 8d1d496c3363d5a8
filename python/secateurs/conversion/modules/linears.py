"""Linears of a converted layer: dense, 2:4 as torch packs it, or packed for our kernels."""

from __future__ import annotations

import warnings

from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT

from secateurs import ops
from secateurs.checks import first_line
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.conversion.modules.part import Linear
from secateurs.errors import FormatError
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


class SemiStructuredLinear(DenseLinear):
    """The same of a 2:4 weight by cuSPARSELt, which torch brings: for many rows of x.

    Raises FormatError where torch packs no such weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructured")
            try:
                packed = SparseSemiStructuredTensorCUSPARSELT.from_dense(weight.contiguous())
            except (RuntimeError, NotImplementedError) as error:
                raise FormatError(f"cuSPARSELt does not take it ({first_line(error)})") from None
        super().__init__(packed, bias, activation)

    def dense(self) -> Tensor:
        dense: Tensor = self.weight.to_dense()
        return dense

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, 2:4, activation={self.activation}"


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
