"""Vector N:M weights: neighbouring outputs keep the same inputs, equally many each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.errors import FormatError


@dataclass(frozen=True, eq=False)
class VectorWeight:
    """A linear weight `[N, K]` in which `v` neighbouring outputs keep the same inputs (vector N:M;
    with v = 1, 2:4).

    Attributes:
        values: `[N / v, kept, v]`, contiguous: the weights of a group's outputs, input by input; or
            `[N / v, ceil(kept / s), v, s]` with `s` inputs of each output side by side (zeros fill
            the last ones), as bfloat16 products want them.
        columns: int32 `[N / v, kept]`, the inputs each group keeps, ascending.
        shape: `(N, K)`.
        places: of a 2:4 weight the columns as sparse tensor cores read them (`two_four_places`).
            Kernels only run with what was packed: to derive it in a call would wait for the GPU.
    """

    values: Tensor
    columns: Tensor
    shape: tuple[int, int]
    places: Tensor | None = None

    @property
    def vector(self) -> int:
        return self.values.shape[2]

    @property
    def together(self) -> int:
        """How many inputs of an output are stored side by side."""
        return self.values.shape[3] if self.values.dim() == 4 else 1

    @property
    def density(self) -> float:
        """Stored inputs over all inputs."""
        return self.columns.shape[1] / max(1, self.shape[1])

    @classmethod
    def pack(
        cls, weight: Tensor, keep: Tensor, vector: int, together: int | None = None
    ) -> VectorWeight:
        """Pack the entries of `weight` `[N, K]` where `keep` (bool `[N, K]`) is True, with
        `together` inputs of an output side by side; None: as many as the kernels read where the
        weight is.

        Raises FormatError unless each group of `vector` outputs keeps the same inputs, and all
        groups equally many.
        """
        n, k = weight.shape
        if vector < 1 or n % vector or keep.shape != weight.shape:
            raise FormatError(
                f"a weight of shape {(n, k)} and keep {tuple(keep.shape)} do not fit groups of "
                f"{vector} outputs"
            )
        if together is None:
            together = ops.inputs_together(weight.device, weight.dtype) if vector > 1 else 1
        groups = keep.to(weight.device, torch.bool).view(n // vector, vector, k)
        chosen = groups[:, 0]
        counts = chosen.sum(1)
        if bool((groups != chosen[:, None]).any()):
            raise FormatError(f"keep must be the same for each {vector} neighbouring outputs")
        if n and int(counts.min()) != int(counts.max()):
            raise FormatError(
                f"every group of outputs must keep equally many inputs, got {int(counts.min())} to "
                f"{int(counts.max())}"
            )
        kept = int(counts[0]) if n else 0
        columns = chosen.nonzero()[:, 1].view(n // vector, kept)
        inputs = weight.detach().view(n // vector, vector, k).transpose(1, 2)  # [N/v, K, v]
        values = inputs.gather(1, columns[:, :, None].expand(-1, -1, vector))
        if together > 1:
            values = nn.functional.pad(values, (0, 0, 0, -kept % together))
            steps = values.shape[1] // together
            values = values.view(len(values), steps, together, vector).transpose(2, 3)
        columns = columns.to(torch.int32)
        places = two_four_places(columns, (n, k)) if vector == together == 1 else None
        return cls(values.contiguous(), columns, (n, k), places)

    def to_dense(self) -> Tensor:
        """The weight `[N, K]` with zeros where nothing is stored."""
        (n, k), v = self.shape, self.vector
        values = self.values
        if values.dim() == 4:
            values = values.transpose(2, 3).flatten(1, 2)[:, : self.columns.shape[1]]
        inputs = values.new_zeros(n // max(1, v), k, v)
        index = self.columns.long()[:, :, None].expand(-1, -1, v)
        return inputs.scatter(1, index, values).transpose(1, 2).reshape(n, k)

    def validate(self) -> VectorWeight:
        """Return self, or raise FormatError: a kernel trusts these columns."""
        (n, k), values, columns = self.shape, self.values, self.columns
        if (
            values.dim() not in (3, 4)
            or not values.is_contiguous()
            or values.shape[0] * values.shape[2] != n
        ):
            raise FormatError(
                f"values must be contiguous [N / v, kept, v] or [N / v, kept / s, v, s] for {n} "
                f"outputs, got shape {tuple(values.shape)}"
            )
        if columns.dtype != torch.int32 or columns.dim() != 2 or len(columns) != len(values):
            raise FormatError(
                f"columns must be int32 [{len(values)}, kept], got {columns.dtype} "
                f"{tuple(columns.shape)}"
            )
        if -(-columns.shape[1] // self.together) != values.shape[1]:
            raise FormatError(
                f"values of shape {tuple(values.shape)} do not store {columns.shape[1]} inputs"
            )
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < k:
            raise FormatError(f"columns must lie in 0..{k - 1}")
        if bool((columns.diff(dim=1) <= 0).any()):
            raise FormatError("columns must rise within each group of outputs")
        if self.places is not None:
            places = two_four_places(columns, self.shape) if self.vector == 1 else None
            if places is None or not torch.equal(self.places, places):
                raise FormatError("places must be those of the columns (two_four_places)")
        return self


def two_four_places(columns: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Where among its four inputs each kept one of a 2:4 weight `[N, K]` stands, as mma.sp reads it
    (csrc/cuda/sparse_linear.h): int32 `[N / 16, K / 32, 8, 2]`.

    None unless two of every four inputs are kept, N is a multiple of 16 and K of 32.

    Args:
        columns: int32 `[N, K / 2]`, the inputs that each output keeps, ascending.
    """
    (n, k), kept = shape, columns.shape[1]
    if n % 16 or k % 32 or kept * 2 != k:
        return None
    fours = torch.arange(kept, device=columns.device) // 2
    if bool((columns // 4 != fours).any()):
        return None
    shifts = 2 * torch.arange(8, device=columns.device)
    halves = ((columns % 4).view(n // 16, 2, 8, k // 32, 2, 8).long() << shifts).sum(-1)
    words = halves[:, 0] | halves[:, 1] << 16  # [N / 16, 8, K / 32, 2]
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)  # the bits of an uint32
    return words.permute(0, 2, 1, 3).to(torch.int32).contiguous()
