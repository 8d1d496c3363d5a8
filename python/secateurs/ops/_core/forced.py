"""Choices that hold inside a `with` block, in whichever thread its work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Forced(Generic[T]):
    """A choice made by the `with` blocks that are open.

    A block's choice holds where it was opened, and in every thread of the process that has made
    none itself: workers of a pool, of DataParallel or of autograd do a block's work, and need not
    have been started inside it. Of several blocks open elsewhere it follows the one opened last.
    """

    def __init__(self, name: str) -> None:
        # Blocks are lists, to tell equal ones apart.
        self._own: ContextVar[list[T] | None] = ContextVar(name, default=None)
        self._open: tuple[list[T], ...] = ()  # of all threads
        self._changing = Lock()

    def get(self) -> T | None:
        """Return the choice that holds here; None without one."""
        blocks = self._open
        if not blocks:
            return None
        own = self._own.get()  # of a context that was copied it may be closed by now
        block = own if own is not None and any(own is each for each in blocks) else blocks[-1]
        return block[0]

    @contextmanager
    def set(self, choice: T) -> Iterator[None]:
        """Choose inside the block."""
        block = [choice]
        token = self._own.set(block)
        with self._changing:
            self._open += (block,)
        try:
            yield
        finally:
            with self._changing:
                self._open = tuple(other for other in self._open if other is not block)
            self._own.reset(token)
