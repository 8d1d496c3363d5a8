"""What else a dense model can be run by: pruned models are timed in turns with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks.dense import Dense, calibration
from torch import nn

from secateurs.errors import BackendError
from secateurs.measurement.inputs import token_inputs
from secateurs.measurement.peers import peer_in
from secateurs.measurement.peers.apart import SETTLE, Apart, Order
from secateurs.measurement.timing import alternate, sampler

PEERS = ("openvino", "onnxruntime", "compiled")


@contextmanager
def dense_peers(
    dense: Dense, names: Sequence[str], shape: tuple[int, int], precision: str | None
) -> Iterator[dict[str, Apart]]:
    """Runtimes of the dense model by their names, each in a process of its own; those that are not
    installed are told and left out."""
    found: dict[str, Apart] = {}
    inputs, examples = token_inputs(dense.model, shape), calibration(dense, 64, 1)
    order = Order(dense.model, inputs, examples, torch.get_num_threads())
    with ExitStack() as stack:
        for name in names:
            try:
                found[name] = stack.enter_context(Apart(peer_in(name, precision), order))
            except BackendError as error:
                print(f"  {name}: left out, {error}")
        yield found


@torch.inference_mode()
def times_beside(
    fast: nn.Module,
    dense: Dense,
    peers: Mapping[str, Apart],
    shape: tuple[int, int],
    min_time: float,
) -> dict[str, Any]:
    """Medians of a pruned model in turns with the dense one as transformers runs it, and with the
    peers, of which the fastest is told."""
    inputs, device = token_inputs(dense.model, shape), torch.device("cpu")
    ours = [
        sampler(partial(model, **inputs), device, settle=SETTLE if peers else 0.0)
        for model in (fast, dense.model)
    ]
    others = [peer.sample for peer in peers.values()]
    samples = alternate([*ours, *others], min_repeats=15, min_time=min_time)
    ms, stock, *of_peers = map(float, np.median(np.array(samples), axis=1))
    low, high = np.quantile(samples[0], (0.2, 0.8))
    peer_ms, peer = min(zip(of_peers, peers, strict=True), default=(None, None))
    times = {"ms": ms, "spread_ms": float(high - low), "stock_ms": stock}
    return {**times, "peer": peer, "peer_ms": peer_ms}
