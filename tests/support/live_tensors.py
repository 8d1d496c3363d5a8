"""How many bytes the tensors hold that were made since a moment."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn


class Watch:
    """Looks at how many bytes are live in tensors made since it began.

    Attributes:
        most: that were seen.
    """

    most = 0

    def look(self) -> int:
        """The bytes that are live now, memory that several tensors share once."""
        held = {}
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
        now = sum(held.values())
        self.most = max(self.most, now)
        return now

    def returns_of(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Look after each call of the function of this name, which is called by that name."""
        module, _, function = name.rpartition(".")
        watched: Callable[..., Any] = getattr(__import__(module, fromlist=[function]), function)

        def call(*args: Any, **named: Any) -> Any:
            result = watched(*args, **named)
            self.look()
            return result

        monkeypatch.setattr(name, call)


@contextmanager
def watch() -> Iterator[Watch]:
    """Watch what is made inside the block."""
    gc.collect()
    gc.freeze()  # what there was before is not among the objects any more
    try:
        yield Watch()
    finally:
        gc.unfreeze()
