"""Reading one layer of a saved model: nothing in the file is believed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import view
from secateurs.architectures.sites import Sites
from secateurs.conversion.slicing import CompactLinear, compact_blocks
from secateurs.errors import FormatError
from secateurs.formats import BlockSparseWeight
from secateurs.formats.int8_block_sparse import TOP
from secateurs.storage.skeleton import check_like, named_tensors, place

PARTS = ("values", "indptr", "indices")  # of a block-sparse weight
SCALES = "scales"  # of the codes of a weight, one for each output


@dataclass(frozen=True)
class LayerReader:
    """Reads one layer from untrusted `tensors`: checks each and removes its name from `left`."""

    tensors: Mapping[str, Tensor]
    left: set[str]
    dtype_of: Callable[[str], torch.dtype]
    layer: nn.Module  # of a skeleton
    sites: Sites
    keep: LayerKeep
    index: int
    precision: str | None
    unrounded: Collection[str]  # sites of linears that are not in that precision

    def read(self) -> dict[str, CompactLinear]:
        """Fill what the layer holds besides its linears, and return these by role."""
        lent = self.keep.shape.architecture.lent
        for name, made in named_tensors(self.layer).items():
            if name in lent or name.rpartition(".")[0] in lent:
                place(self.layer, name, self._taken(name, made))
        return {role: self._linear(role) for role in self._stored()}

    def _stored(self) -> list[str]:
        """Return the roles that have stored tensors. A sub-layer without heads or neurons stores
        only the bias of its last projection."""
        keep = self.keep
        stored: list[str] = []
        for sublayer in keep.shape.architecture.sublayers:
            if keep.stays[sublayer.name]:
                units = bool(keep.units[sublayer.units].any())
                stored += sublayer.roles if units else [sublayer.last.role]
        return stored

    def _linear(self, role: str) -> CompactLinear:
        linear, keep = self.keep.shape.architecture.linear(role), self.keep
        made, path = view(self.layer, linear), linear.name
        rows, columns = keep.sides(role)
        shape = (int(rows.sum()), int(columns.sum()))
        grid, block = compact_blocks(keep, role)
        name, levels = f"{path}.weight", keep.levels.get(role)
        dtype = self.dtype_of(self._name(name))
        unrounded = self.sites.name(self.index, role) in self.unrounded
        # What has no columns is not multiplied.
        coded = self.precision == "int8" and shape[1] > 0 and not unrounded
        stored = torch.int8 if levels is not None or coded else dtype
        if grid is None or block is None:
            weight = self._taken(name, made.weight.new_empty(shape, dtype=stored))
            if role in keep.weights:
                gone = ~keep.elements(role)[rows][:, columns].to(weight.device)
                if bool(weight[gone].any()):
                    raise FormatError(
                        f"expected zeros in {self._name(name)} where the plan removes"
                    )
        else:
            weight = self._blocks(name, shape, grid, block, stored)
        if levels is not None:
            top = 2 ** (levels.bits - 1) - 1
            low, high = (int(end) for end in weight.aminmax()) if weight.numel() else (0, 0)
            if low < -top or high > top:
                raise FormatError(
                    f"expected codes of {levels.bits} bits in {self._name(name)}, got {low} to "
                    f"{high}"
                )
            weight = levels.values(weight, dtype)
        scales = None
        if coded and levels is None:
            scales = self._scales(f"{path}.{SCALES}", shape[0], weight)
            weight = (weight.float() * scales[:, None]).to(dtype)
        bias = None
        if made.bias is not None:
            bias = self._taken(f"{path}.bias", made.bias[: shape[0]])
        return CompactLinear(weight, bias, grid, block, scales)

    def _scales(self, name: str, outputs: int, codes: Tensor) -> Tensor:
        """The scales of `codes`, which are checked too."""
        scales = self._taken(name, codes.new_empty(outputs, dtype=torch.float32, device="meta"))
        if codes.numel() and int(codes.min()) < -TOP:
            raise FormatError(f"expected codes from {-TOP} on beside {self._name(name)}, got less")
        if scales.dtype != torch.float32 or (outputs and float(scales.min()) <= 0):
            raise FormatError(f"expected float32 above 0 in {self._name(name)}")
        return scales

    def _blocks(
        self, name: str, shape: tuple[int, int], grid: Tensor, block: tuple[int, int], dtype: Any
    ) -> Tensor:
        values, indptr, indices = (self._at(f"{name}.{part}") for part in PARTS)
        expected = (int(grid.sum()), block[1], block[0])
        check_like(
            f"{self._name(name)}.values", values, values.new_empty(expected, device="meta"), dtype
        )
        if values.dtype != dtype:
            raise FormatError(f"expected {self._name(name)} as {dtype}, got {values.dtype}")
        _check_finite(self._name(name), values)
        packed = BlockSparseWeight(values, indptr, indices, shape).validate()
        if not torch.equal(packed.keep().cpu(), grid):
            raise FormatError(f"expected the blocks that the plan keeps in {self._name(name)}")
        return packed.to_dense()

    def _taken(self, name: str, made: Tensor) -> Tensor:
        tensor, whole = self._at(name), self._name(name)
        check_like(whole, tensor, made, self.dtype_of(whole))
        _check_finite(whole, tensor)
        return tensor

    def _at(self, name: str) -> Tensor:
        if self._name(name) not in self.left:
            raise FormatError(f"expected {self._name(name)}, but it is missing")
        self.left.remove(self._name(name))
        return self.tensors[self._name(name)]

    def _name(self, name: str) -> str:
        return f"{self.sites.layer_path(self.index)}.{name}"


def _check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    if not all(bool(end.isfinite()) for end in tensor.aminmax()):
        raise FormatError(f"expected finite values, but {name} holds NaN or infinity")
