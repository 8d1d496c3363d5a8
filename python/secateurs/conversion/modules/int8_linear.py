"""Linears in codes of 8 bits, packed once for the kernels of `ops.int8_linear` and
`ops.int8_vector_linear`."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.formats import Int8VectorWeight, Int8Weight
from secateurs.ops._core.dispatch import forced_backend


class CodedLinear(KernelLinear):
    """y = act(x W^T + bias) * multiplier + residual by one of our kernels; W is in codes of 8 bits,
    and x is rounded to such codes in each call.

    Args:
        dtype: of everything but the codes and their scales.
    """

    def __init__(
        self,
        weight: Int8Weight | Int8VectorWeight,
        bias: Tensor | None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        weight.validate()
        self.values = nn.Buffer(weight.values)
        # As whole numbers: a model that is cast would round them.
        self.scale_bits = nn.Buffer(weight.scales.view(torch.int32))
        self.bias = None if bias is None else nn.Buffer(bias.to(dtype))
        self.like = nn.Buffer(weight.scales.new_empty(0, dtype=dtype), persistent=False)
        self.shape, self.activation = weight.shape, activation

    @property
    @abstractmethod
    def weight(self) -> Int8Weight | Int8VectorWeight: ...

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def scales(self) -> Tensor:
        """float32 `[N]`, of each output."""
        return self.scale_bits.view(torch.float32)

    def dense(self) -> Tensor:
        """The weight `[N, K]`, zeros where none is stored, in the dtype of the model; with the
        scales it still tells the codes."""
        return super().dense().to(self.dtype)

    def refusal(self) -> str | None:
        """Why nothing would run this where it is, if so; the reference does where it is forced."""
        return None if forced_backend() == "reference" else super().refusal()


class Int8Linear(CodedLinear):
    """A linear in codes, dense or block-sparse."""

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
        super().__init__(weight, bias, activation, dtype)
        self.indptr = nn.Buffer(weight.indptr)
        self.indices = nn.Buffer(weight.indices)

    @property
    def weight(self) -> Int8Weight:
        return Int8Weight(self.values, self.scales, self.indptr, self.indices, self.shape)

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"{self.shape}, int8, block={weight.block}, density={weight.density:.2f}, "
            f"activation={self.activation}"
        )


class Int8VectorLinear(CodedLinear):
    """A linear in codes, neighbouring outputs keeping the same inputs."""

    operation = staticmethod(ops.int8_vector_linear)
    places: Tensor
    indptr: Tensor
    starts: Tensor

    def __init__(
        self,
        weight: Int8VectorWeight,
        bias: Tensor | None,
        activation: str = "none",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(weight, bias, activation, dtype)
        self.places = nn.Buffer(weight.places)
        self.indptr = nn.Buffer(weight.indptr)
        self.starts = nn.Buffer(weight.starts)

    @property
    def weight(self) -> Int8VectorWeight:
        packed = (self.values, self.scales, self.places, self.indptr, self.starts)
        return Int8VectorWeight(*packed, self.shape)

    def extra_repr(self) -> str:
        weight = self.weight
        return (
            f"{self.shape}, int8, vectors of {weight.vector}, density={weight.density:.2f}, "
            f"activation={self.activation}"
        )
