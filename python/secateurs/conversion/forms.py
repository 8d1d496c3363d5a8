"""Every way a linear can run, one row of FORMS each: how a stack of linears is made into a module.

A new form is a row here, a packing format in `secateurs.formats` and an operation in
`secateurs.ops`; the builder, the picker and a layer that runs as one operation go over the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from secateurs import ops
from secateurs.architectures.kept import LayerKeep
from secateurs.architectures.linears import stacked
from secateurs.conversion.modules import (
    DenseLinear,
    Int8Linear,
    Int8VectorLinear,
    PackedLinear,
    PatternLinear,
    SemiStructuredLinear,
)
from secateurs.conversion.modules.kernel_linear import KernelLinear
from secateurs.conversion.modules.part import Linear
from secateurs.conversion.modules.pattern_linear import NM_INPUTS, pack
from secateurs.conversion.slicing import CompactLinear, common_grid, stacked_bias
from secateurs.errors import BackendError, FormatError
from secateurs.formats import BlockSparseWeight, Int8VectorWeight, Int8Weight
from secateurs.formats.int8_block_sparse import row_scales
from secateurs.ops.block_sparse_linear.cpu import WIDTHS


class Stack:
    """Linears that read the same input, to be run as one product.

    Args:
        roles: of the linears, in the order of their outputs.
        parts: what slicing left of each.
        keep: what the plan leaves of their layer.
        activation: of the kernels' epilogue.
    """

    def __init__(
        self,
        roles: Sequence[str],
        parts: Sequence[CompactLinear],
        keep: LayerKeep,
        activation: str = "none",
    ) -> None:
        self.roles, self.parts, self.keep, self.activation = roles, parts, keep, activation

    @cached_property
    def weight(self) -> Tensor:
        """`[N, K]`."""
        return stacked([part.weight for part in self.parts])

    @cached_property
    def bias(self) -> Tensor | None:
        """`[N]`."""
        return stacked_bias(self.parts)

    @cached_property
    def scales(self) -> Tensor:
        """float32 `[N]`, of the codes in which the weight is stored: those that it was rounded to,
        by an earlier conversion or on the levels of its plan, else those of its largest entries."""
        scales = []
        for role, part in zip(self.roles, self.parts, strict=True):
            levels, weight = self.keep.levels.get(role), part.weight
            if levels is not None:
                scales.append(weight.new_full((len(weight),), levels.scale, dtype=torch.float32))
            else:
                scales.append(row_scales(weight) if part.scales is None else part.scales)
        return torch.cat(scales)


@dataclass(frozen=True)
class Made:
    """A stack as a module of one form.

    Attributes:
        name: the form's, with what tells this packing from another.
        note: for the report.
    """

    name: str
    module: Linear
    note: str = ""


@dataclass(frozen=True)
class Form:
    """One way a linear can run.

    Attributes:
        name: in reports and saved picks.
        make: the module of a stack; None where the plan asks for nothing of the kind. Raises
            FormatError with the reason where it asks, and the stack cannot be packed so.
        whole: whether a layer of such linears can run as one operation.
        precision: what is asked for with it, None for no rounding but that of the dtype.
    """

    name: str
    make: Callable[[Stack], Made | None]
    whole: bool = False
    precision: str | None = None


def _dense(stack: Stack) -> Made:
    return Made("torch", DenseLinear(stack.weight, stack.bias, stack.activation))


def _panels(stack: Stack) -> Made:
    panels = BlockSparseWeight.pack_dense(stack.weight)
    return Made("dense panels", PackedLinear(panels, stack.bias, stack.activation))


def _blocks(stack: Stack) -> Made | None:
    grid, block = common_grid(stack.parts)
    if grid is None or block is None:
        if any(role in stack.keep.blocks for role in stack.roles):
            raise FormatError("blocks no longer align once heads or neurons are sliced off")
        return None
    grid, block = _narrow(grid, block, stack.weight.device)
    sparse = BlockSparseWeight.pack(stack.weight, grid, block)
    return Made(
        "block-sparse",
        PackedLinear(sparse, stack.bias, stack.activation),
        f"{sparse.density:.2f} of the {block[0]}x{block[1]} blocks are stored",
    )


def _narrow(
    grid: Tensor, block: tuple[int, int], device: torch.device
) -> tuple[Tensor, tuple[int, int]]:
    """The same blocks as several of fewer outputs, where a CPU's kernels take no wider ones."""
    (bn, bk), most = block, max(WIDTHS)
    if device.type != "cpu" or bn <= most or bn % most:
        return grid, block
    return grid.repeat_interleave(bn // most, 0), (most, bk)


def _pattern(stack: Stack) -> Made | None:
    block = _pattern_block(stack)
    if block is None:
        return None
    try:
        packed = pack(stack.weight, _pattern_keep(stack), block)
    except FormatError as error:
        raise FormatError(f"no one pattern is left to pack ({error})") from None
    return Made(
        f"pattern {block[0]}x{block[1]} at {packed.density:.2f}",
        PatternLinear(packed, stack.bias, stack.activation),
    )


def _semi_structured(stack: Stack) -> Made | None:
    weight = stack.weight
    n, k = weight.shape
    if _pattern_block(stack) != (1, 1) or not ops.sparse_tensor_cores(weight.device, (n, k)):
        return None
    fours = _pattern_keep(stack).view(n, k // NM_INPUTS, NM_INPUTS).sum(2)
    if bool((fours > NM_INPUTS // 2).any()):
        return None
    return Made("cuSPARSELt", SemiStructuredLinear(weight, stack.bias, stack.activation))


def _pattern_block(stack: Stack) -> tuple[int, int] | None:
    """The `block` of the one kind of pattern of a stack, as in `PatternMask`; None without any."""
    masks = [stack.keep.patterns.get(role) for role in stack.roles]
    blocks = {None if mask is None else mask.block for mask in masks}
    if len(blocks) > 1:
        raise FormatError(
            "no one pattern is left to pack (expected one kind of pattern in "
            f"{', '.join(stack.roles)})"
        )
    return blocks.pop()


def _pattern_keep(stack: Stack) -> Tensor:
    """Bool `[N, K]`, which entries the patterns of all linears of a stack keep."""
    kept = []
    for role in stack.roles:
        rows, columns = stack.keep.sides(role)
        kept.append(stack.keep.patterns[role].keep[rows][:, columns])
    return torch.cat(kept)


def _int8_panels(stack: Stack) -> Made:
    weight = Int8Weight.pack_dense(stack.weight, stack.scales)
    return _int8("int8 panels", weight, stack)


def _int8_blocks(stack: Stack) -> Made | None:
    grid, block = common_grid(stack.parts)
    if grid is None or block is None:
        return None
    grid, block = _narrow(grid, block, stack.weight.device)
    sparse = Int8Weight.pack(stack.weight, grid, block, stack.scales)
    note = f"{sparse.density:.2f} of the {block[0]}x{block[1]} blocks are stored"
    return _int8("int8 block-sparse", sparse, stack, note)


def _int8_vectors(stack: Stack) -> Made | None:
    block = _pattern_block(stack)
    if block is None:
        return None
    if block[1] > 1 or block[0] == 1:
        raise FormatError("zeros of this pattern are multiplied: codes are packed by vectors alone")
    keep = _pattern_keep(stack)
    try:
        packed = Int8VectorWeight.pack(stack.weight, keep, block[0], stack.scales)
    except FormatError as error:
        raise FormatError(f"no one pattern is left to pack ({error})") from None
    note = f"vectors of {block[0]} outputs keep {packed.density:.2f} of the inputs"
    module = Int8VectorLinear(packed, stack.bias, stack.activation, stack.weight.dtype)
    return Made("int8 vectors", module, note)


def _int8(name: str, weight: Int8Weight, stack: Stack, note: str = "") -> Made:
    module = Int8Linear(weight, stack.bias, stack.activation, stack.weight.dtype)
    return Made(name, module, note)


FORMS: tuple[Form, ...] = (
    Form("torch", _dense),
    Form("dense panels", _panels, whole=True),
    Form("block-sparse", _blocks, whole=True),
    Form("pattern", _pattern),
    Form("cuSPARSELt", _semi_structured),
    Form("int8 panels", _int8_panels, whole=True, precision="int8"),
    Form("int8 block-sparse", _int8_blocks, whole=True, precision="int8"),
    Form("int8 vectors", _int8_vectors, precision="int8"),
)
WITHOUT_BYTE_PRODUCTS = ("avx512", "avx2", "portable")  # of the instruction sets
WITH_BFLOAT16_PRODUCTS = ("avx512_bf16", "amx")
PRECISIONS = tuple(sorted({form.precision for form in FORMS if form.precision is not None}))


@dataclass(frozen=True)
class Choice:
    """The forms a stack can run in.

    Attributes:
        modules: the stack as a module of each form, by the form's name.
        whole: names of the forms with which a layer can run as one operation.
        notes: why other forms are missing, for the report.
    """

    modules: dict[str, Linear]
    whole: list[str]
    notes: list[str]


def choices(stack: Stack, precision: str | None = None) -> Choice:
    """Make a stack in every form of a precision that this machine can run. Raises BackendError
    where it can run none."""
    modules: dict[str, Linear] = {}
    whole: list[str] = []
    notes: list[str] = []
    refusals: list[str] = []
    for form in FORMS:
        if form.precision != precision:
            continue
        try:
            made = form.make(stack)
        except FormatError as error:
            notes.append(str(error))
            continue
        if made is None:
            continue
        notes += filter(None, [made.note])
        refusal = made.module.refusal() if isinstance(made.module, KernelLinear) else None
        if refusal is not None:
            refusals.append(f"no kernel for {made.name} ({refusal})")
            continue
        modules[made.name] = made.module
        whole += [made.name] if form.whole else []
    if not modules:
        raise BackendError(
            f"expected somewhere to run {'+'.join(stack.roles)} in {precision}, got "
            f"{'; '.join(refusals)}"
        )
    if precision == "int8":
        notes.insert(0, _codes_run_on())
    # Several forms may want the same, and miss it for one reason.
    return Choice(modules, whole, [*dict.fromkeys(notes + refusals)])


def why_slow(name: str, device: torch.device) -> str | None:
    """Why a machine is not fast at "int8" or "bfloat16", where it has no products of such."""
    if device.type != "cpu":
        return f"it runs on the CPU only, the model is on {device.type}" if name == "int8" else None
    isa = ops.build_info()["cpu"]["isa"]
    if name == "int8":
        return f"{isa} has no products of bytes" if isa in WITHOUT_BYTE_PRODUCTS else None
    return None if isa in WITH_BFLOAT16_PRODUCTS else f"{isa} has no products of bfloat16"


def _codes_run_on() -> str:
    """The instruction set that multiplies codes, and whether it is made for that."""
    name = ops.build_info()["cpu"]["isa"]
    slow = ", which has no products of bytes: float32 may be as fast"
    return f"codes of 8 bits on {name}{slow if name in WITHOUT_BYTE_PRODUCTS else ''}"
