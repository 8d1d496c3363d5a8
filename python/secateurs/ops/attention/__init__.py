"""softmax(scale q k^T + mask) v: uneven numbers of query and key heads, padding, block patterns."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from secateurs.errors import OperandError
from secateurs.ops._core.dispatch import Op
from secateurs.ops._core.gpu import prefer_for_attention, triton_backend
from secateurs.ops._core.register import register
from secateurs.ops.attention import cpu, cuda, reference
from secateurs.ops.attention.operands import Operands, check, flops


class Pattern(Protocol):
    """Which blocks of the score matrix exist, as `secateurs.attention_patterns.BlockLayout`
    describes."""

    @property
    def indptr(self) -> Tensor:
        """int32 `[Hq or 1, ceil(Tq / block) + 1]`."""

    @property
    def indices(self) -> Tensor:
        """int32 `[blocks]`."""

    @property
    def partial(self) -> Tensor:
        """int32 `[blocks]`, -1 or an index into `masks`."""

    @property
    def masks(self) -> Tensor:
        """bool `[P, block, block]`."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(Tq, Tk)`."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kv_of: Tensor | None = None,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    pattern: Pattern | None = None,
    short_products: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """Attend with every query head to its key/value head: `[B, Tq, Hq, D]`, contiguous.

    A query that may attend to nothing yields zeros. Numbers at a key that `key_mask` hides do not
    matter, NaN included. A pattern does not promise that: in bfloat16 on AMX the 16 keys
    beside a stored block of 16 meet weights of zero, which a NaN or infinity among their values
    outlives.

    Args:
        q: `[B, Hq, Tq, D]`, any strides; so are k and v.
        k: `[B, Hkv, Tk, D]`.
        v: `[B, Hkv, Tk, D]`.
        kv_of: int32 `[Hq]`, the key/value head of each query head; None: groups of Hq / Hkv
            neighbours share one. Kernels of GPUs trust it: no call waits to read it there.
        key_mask: bool `[B, Tk]`, True where a key may be attended.
        mask: bool (True: may be attended) or float (added to the scaled scores), broadcastable to
            `[B, Hq, Tq, Tk]`.
        causal: query i sees keys up to `i + Tk - Tq`.
        scale: of the scores; None: `D ** -0.5`.
        pattern: the blocks of scores that exist, for each head or for all; what else hides a key
            hides it still. Its indices are trusted: make them with
            `secateurs.attention_patterns.layout`, or `validate` them.
        short_products: elements and weights in float32 may be rounded to bfloat16 before they are
            multiplied, where that is faster; sums stay in float32.
        softcap: scores s become softcap * tanh(s / softcap) before anything hides them (Gemma 2
            report, 2024, section 2); no kernel does that, torch's own operations do. None: they
            stay.

    Raises:
        OperandError: the tensors do not fit together.
        BackendError: the backend that is forced refuses the call.
    """
    hidden = (kv_of, key_mask, mask, causal, scale, pattern)
    return _call(arguments(q, k, v, *hidden, short_products, softcap))


def arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_of: Tensor | None = None,
    key_mask: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    pattern: Pattern | None = None,
    short_products: bool = False,
    softcap: float | None = None,
) -> Operands:
    """Return the operands of the same call."""
    if scale is None:
        scale = max(q.shape[-1], 1) ** -0.5
    blocks: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None,) * 4
    if pattern is not None:
        if tuple(pattern.shape) != (q.shape[2], k.shape[2]):
            raise OperandError(
                f"expected a pattern over {(q.shape[2], k.shape[2])} queries and keys, got one "
                f"over {tuple(pattern.shape)}"
            )
        blocks = (pattern.indptr, pattern.indices, pattern.partial, pattern.masks)
    return Operands(q, k, v, kv_of, key_mask, mask, causal, scale, *blocks, short_products, softcap)


OP = Op(
    "attention",
    check,
    cuda.BACKEND,
    triton_backend("attention"),
    cpu.BACKEND,
    reference.BACKEND,
    prefer=prefer_for_attention,
)
_call = register(OP, Operands, reference.attention, flops)
