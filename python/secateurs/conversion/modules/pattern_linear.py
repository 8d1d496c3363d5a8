"""PatternLinear: a linear whose zeros are regular, packed once for the kernels of
`ops.pattern_linear`."""

from __future__ import annotations

from torch import Tensor, nn

from secateurs import ops
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.formats import LibraryWeight, VectorWeight

NM_INPUTS = 4  # inputs among which an N:M pattern of single outputs chooses


def pack(weight: Tensor, keep: Tensor, block: tuple[int, int]) -> VectorWeight | LibraryWeight:
    """`weight` `[N, K]` packed as the pattern that its mask `keep` `[N, K]` follows.

    Args:
        block: as in `PatternMask`: `(v, 1)` groups of outputs, of which single ones (2:4) become
            vectors of one output where sparse tensor cores take them, else a library of 1 x 4
            patterns; `(p, q)` blocks of a library.

    Raises FormatError where the mask follows no such pattern, or more than 16.
    """
    p, q = block
    if q == 1 and p > 1:
        return VectorWeight.pack(weight, keep, p)
    (n, k), single, q = weight.shape, q == 1, NM_INPUTS if q == 1 else q
    if n % p or k % q:
        return VectorWeight.pack(weight, keep, 1)
    if single and ops.sparse_tensor_cores(weight.device, (n, k)):
        fours = keep.to(weight.device).view(n, k // NM_INPUTS, NM_INPUTS).sum(2)
        if bool((fours == NM_INPUTS // 2).all()):
            return VectorWeight.pack(weight, keep, 1)
    tiles = keep.to(weight.device).view(n // p, p, k // q, q).transpose(1, 2).reshape(-1, p * q)
    library, codes = tiles.unique(dim=0, return_inverse=True)
    return LibraryWeight.pack(weight, codes.view(n // p, k // q), library.view(-1, p, q))


class PatternLinear(KernelLinear):
    """y = act(x W^T + bias) * multiplier + residual by our kernel; W is vector N:M, 2:4, or of a
    library of block patterns."""

    operation = staticmethod(ops.pattern_linear)
    library: Tensor | None

    def __init__(
        self,
        weight: VectorWeight | LibraryWeight,
        bias: Tensor | None,
        activation: str = "none",
    ) -> None:
        super().__init__()
        weight.validate()
        places: Tensor | None = None
        self.values = nn.Buffer(weight.values)
        if isinstance(weight, LibraryWeight):
            self.index, self.library = nn.Buffer(weight.codes), nn.Buffer(weight.library)
        else:
            self.index, self.library, places = nn.Buffer(weight.columns), None, weight.places
        self.places = None if places is None else nn.Buffer(places, persistent=False)
        self.bias = None if bias is None else nn.Buffer(bias.to(weight.values.dtype))
        self.shape, self.activation = weight.shape, activation

    @property
    def codes(self) -> Tensor:
        """uint8 `[N / p, K / q]`, which patterns of the library."""
        return self.index

    @property
    def columns(self) -> Tensor:
        """int32 `[N / v, kept]`, which inputs the vectors are of."""
        return self.index

    @property
    def weight(self) -> VectorWeight | LibraryWeight:
        if self.library is None:
            return VectorWeight(self.values, self.index, self.shape, self.places)
        return LibraryWeight(self.values, self.index, self.library, self.shape)

    def extra_repr(self) -> str:
        kind = "vectors" if self.library is None else "library"
        return (
            f"{self.shape}, {kind}, density={self.weight.density:.2f}, activation={self.activation}"
        )
