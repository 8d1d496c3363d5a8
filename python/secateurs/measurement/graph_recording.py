"""CUDA graphs: the work of a GPU, recorded to be done again without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3  # compiles, tunes and fills caches outside the graph


class Recording:
    """A call recorded on one GPU, whichever is the current one.

    Attributes:
        outputs: what the call returned, in the graph's own memory: each replay overwrites it.

    Raises RuntimeError where the call does what no graph can hold: it waits for the GPU.
    """

    def __init__(self, call: Callable[[], Any], device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            # torch's own stream for recording is of the GPU that was current when it was made.
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    call()
            torch.cuda.current_stream(device).wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side):
                self.outputs = call()

    def replay(self) -> Any:
        """Do it again, on the GPU's current stream, and return `outputs`."""
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.outputs
