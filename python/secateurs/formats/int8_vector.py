"""Int8 weights of vectors: codes of 8 bits, neighbouring outputs keeping the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.checks import door, fit
from secateurs.errors import FormatError
from secateurs.formats.int8_block_sparse import TOP, check_scales, codes, scales_of
from secateurs.formats.shapes import sides
from secateurs.ops.int8_linear.operands import GROUP
from secateurs.ops.int8_vector_linear.reference import dense_codes

SHIFT = 128  # what kernels add to codes of inputs, and `starts` take off


@dataclass(frozen=True, eq=False)
class Int8VectorWeight:
    """A linear weight `[N, K]` = scales `[N, 1]` * codes `[N, K]`, codes -127 .. 127, in which `v`
    neighbouring outputs keep the same inputs (vector N:M).

    A pair is a group of outputs and 64 inputs, those which share a scale in a row of `x`; pairs lie
    inputs first. What a pair keeps lies in words of four inputs, the last of them filled up with
    codes of zero.

    Attributes:
        values: int8 `[words, v, 4]`, contiguous: four inputs of an output side by side.
        scales: float32 `[N]`, of each output.
        places: uint8 `[words, 4]`, which of the 64 inputs.
        indptr: int32 `[pairs + 1]`; words `indptr[i] .. indptr[i + 1]` are those of pair i.
        starts: int32 `[pairs, v]`, -128 times the sum of the codes of an output: kernels add 128 to
            the codes of inputs.
        shape: `(N, K)`.
    """

    values: Tensor
    scales: Tensor
    places: Tensor
    indptr: Tensor
    starts: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("values", "scales", "places", "indptr", "starts"):
            fit(name, getattr(self, name), Tensor, FormatError)
        object.__setattr__(self, "shape", fit("shape", self.shape, tuple[int, int], FormatError))

    @property
    def vector(self) -> int:
        return self.values.shape[1]

    @property
    def density(self) -> float:
        """Stored inputs over all inputs."""
        return self.values.numel() / max(1, self.shape[0] * self.shape[1])

    @classmethod
    @door
    def pack(
        cls, weight: Tensor, keep: Tensor, vector: int, scales: Tensor | None = None
    ) -> Int8VectorWeight:
        """Round the entries of `weight` `[N, K]` where `keep` (bool `[N, K]`) is True to codes.

        Args:
            scales: float `[N]`, of each output; None: those of `row_scales`.

        Raises FormatError if the weight holds NaN or infinity, or unless each group of `vector`
        outputs keeps the same inputs.
        """
        n, k = sides(weight)
        if vector < 1 or n % vector or keep.shape != weight.shape:
            raise FormatError(
                f"a weight of shape {(n, k)} and keep {tuple(keep.shape)} do not fit groups of "
                f"{vector} outputs"
            )
        scales = scales_of(weight, scales)
        alike = keep.to(weight.device, torch.bool).view(n // vector, vector, k)
        chosen = alike[:, 0]
        if bool((alike != chosen[:, None]).any()):
            raise FormatError(f"keep must be the same for each {vector} neighbouring outputs")
        groups = -(-k // GROUP)
        row, column = chosen.nonzero().unbind(1)
        pair = row * groups + column // GROUP
        counts = pair.bincount(minlength=n // vector * groups)
        ends = torch.cat([counts.new_zeros(1), (-(-counts // 4)).cumsum(0)])
        before = counts.cumsum(0) - counts  # kept inputs of earlier pairs
        slot = 4 * ends[pair] + torch.arange(len(pair), device=pair.device) - before[pair]
        words = int(ends[-1])
        places = torch.zeros(4 * words, dtype=torch.uint8, device=weight.device)
        places[slot] = (column % GROUP).to(torch.uint8)
        inputs = codes(weight, scales).view(n // vector, vector, k)[row, :, column]
        values = inputs.new_zeros(4 * words, vector)
        values[slot] = inputs
        values = values.view(words, 4, vector).transpose(1, 2).contiguous()
        indptr = ends.to(torch.int32)
        return cls(values, scales, places.view(words, 4), indptr, _starts(values, indptr), (n, k))

    def to_dense(self) -> Tensor:
        """The float32 weight `[N, K]` that is multiplied, zeros where nothing is stored."""
        dense = dense_codes(self.values, self.places, self.indptr, self.shape[1])
        return dense.float() * self.scales[:, None]

    def validate(self) -> Int8VectorWeight:
        """Return self, or raise FormatError: a kernel trusts these places, so nothing unchecked may
        reach one."""
        (n, k), shape = self.shape, tuple(self.values.shape)
        if (
            len(shape) != 3
            or shape[2] != 4
            or self.values.dtype != torch.int8
            or not self.values.is_contiguous()
            or not shape[1]
            or n % shape[1]
        ):
            raise FormatError(
                f"values must be contiguous int8 [words, v, 4] for {n} outputs, got "
                f"{self.values.dtype} {shape}"
            )
        check_scales(self.scales, n)
        pairs = n // self.vector * -(-k // GROUP)
        _check("places", self.places, torch.uint8, (shape[0], 4))
        _check("indptr", self.indptr, torch.int32, (pairs + 1,))
        _check("starts", self.starts, torch.int32, (pairs, self.vector))
        if self.values.numel() and int(self.values.min()) < -TOP:
            raise FormatError(f"codes must lie in {-TOP}..{TOP}, got {int(self.values.min())}")
        if self.places.numel() and int(self.places.max()) >= GROUP:
            raise FormatError(f"places must lie in 0..{GROUP - 1}, got {int(self.places.max())}")
        words = self.indptr.diff()
        if (
            (int(self.indptr[0]), int(self.indptr[-1])) != (0, shape[0])
            or bool((words < 0).any())
            or bool((4 * words > GROUP).any())
        ):
            raise FormatError(
                f"indptr must rise from 0 to {shape[0]} by at most {GROUP // 4} words a pair"
            )
        if not torch.equal(self.starts, _starts(self.values, self.indptr)):
            raise FormatError(f"starts must be -{SHIFT} times the sums of codes")
        return self


def _starts(values: Tensor, indptr: Tensor) -> Tensor:
    pairs = torch.arange(len(indptr) - 1, device=values.device)
    pair = pairs.repeat_interleave(indptr.diff().long())
    sums = torch.zeros(len(pairs), values.shape[1], dtype=torch.int32, device=values.device)
    return sums.index_add(0, pair, values.sum(2, dtype=torch.int32)) * -SHIFT


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise FormatError(
            f"{name} must be contiguous {dtype} {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
        )
