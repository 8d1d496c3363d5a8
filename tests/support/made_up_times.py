"""Times of a tiny model's layers that no clock took."""

from __future__ import annotations

from secateurs.architectures.kept import LayerShape
from secateurs.search import LatencyTable
from secateurs.search.layer_times import LayerTimes
from secateurs.search.sizes import heads_kept, neurons_kept


def made_up_table(shape: LayerShape, factor: float = 1.0) -> LatencyTable:
    """Of three layers of four heads and 96 neurons: a millisecond for a head, one for 32 neurons,
    and one more for a layer that stays; each times `factor`, as is the dense model's time."""
    layer = LayerTimes(
        {kept: factor * (kept - 4.0) for kept in heads_kept(shape)},
        {kept: factor * (kept / 32 - 3.0) for kept in neurons_kept(shape)},
        -8.0 * factor,
    )
    return LatencyTable(stock=60.0, dense=30.0 * factor, layers=(layer,) * 3)
