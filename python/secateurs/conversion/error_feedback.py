"""Rounding a weight to codes so that the errors of its entries make up for each other.

Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", sections 3.2 and 3.3: column by column, what an entry loses is made up for by those
that are not rounded yet, as the products of the inputs say. Departures: the order of the columns is
that of their mean square, largest first; entries that a plan removes stay zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateurs.formats.int8_block_sparse import TOP

DAMPING = 0.01  # of the mean square of the inputs
CHUNK = 128  # columns, behind which the rest is brought up to date at once


def rounded_together(
    weight: Tensor, scales: Tensor, inputs: Tensor, stays: Tensor | None = None
) -> Tensor:
    """The weight `[N, K]` as whole multiples, -127 .. 127, of `scales` `[N]`, float32, near the one
    that gives least error on `inputs` `[M, K]`.

    Args:
        stays: bool `[N, K]`, False where entries are and stay zero.
    """
    products = (inputs.T @ inputs).double()
    squares = products.diagonal()
    if not bool(squares.any()):
        return _nearest(weight.float(), scales[:, None])
    order = squares.argsort(descending=True)
    products = products[order][:, order]
    products.diagonal().add_(DAMPING * squares.mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left = weight.float()[:, order]
    kept = None if stays is None else stays[:, order]
    out = torch.empty_like(left)
    for start in range(0, left.shape[1], CHUNK):
        stop = min(start + CHUNK, left.shape[1])
        errors = left.new_empty(len(left), stop - start)
        for j in range(start, stop):
            column = _nearest(left[:, j], scales)
            out[:, j] = column if kept is None else column * kept[:, j]
            errors[:, j - start] = error = (left[:, j] - out[:, j]) / upper[j, j]
            left[:, j:stop] -= torch.outer(error, upper[j, j:stop])
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return out[:, order.argsort()]


def _nearest(x: Tensor, scales: Tensor) -> Tensor:
    return (x / scales).round().clamp(-TOP, TOP) * scales
