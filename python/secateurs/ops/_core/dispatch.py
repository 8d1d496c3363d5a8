"""Which backend runs an operation, and why the others do not.

A backend is a record: it refuses a call with a sentence, or runs it. Automatic choice takes the
first that does not refuse. A forced one (`SECATEURS_BACKEND`, or `with use_backend(...)`) runs or
raises; it never falls back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Generic

from torch import Tensor

from secateurs.checks import door
from secateurs.errors import BackendError
from secateurs.ops._core.forced import Forced
from secateurs.ops._core.operands import Operands

NAMES = ("cuda", "triton", "cpu", "reference")  # the order of preference
AUTO = "auto"


@dataclass(frozen=True)
class Backend(Generic[Operands]):
    """One way to run an operation; `refuse` and `run` take the record of a call's operands."""

    name: str
    refuse: Callable[[Operands], str | None]
    run: Callable[[Operands], Tensor]


@dataclass(frozen=True)
class Choice:
    """The backend that would run a call (None: none would), and the reason of each one that would
    not."""

    backend: str | None
    refusals: dict[str, str]

    def why_no_kernel(self) -> str | None:
        """Tell why no backend but the reference would run the call; None if one would."""
        if self.backend not in (None, "reference"):
            return None
        return "; ".join(f"{backend}: {reason}" for backend, reason in self.refusals.items())


class Op(Generic[Operands]):
    """An operation and the backends that implement it, in order of preference.

    `check` takes the record of a call's operands and raises OperandError, in a sentence, unless
    they fit together. `prefer` names the backend that goes before the others for a call, if any.
    """

    def __init__(
        self,
        name: str,
        check: Callable[[Operands], None],
        *backends: Backend[Operands],
        prefer: Callable[[Operands], str | None] = lambda _: None,
    ) -> None:
        self.name, self.check, self.prefer = name, check, prefer
        self.backends = tuple(sorted(backends, key=lambda backend: NAMES.index(backend.name)))

    def run(self, operands: Operands) -> Tensor:
        """Run the call on the backend of choice. Raises BackendError if none may."""
        self.check(operands)
        forced = forced_backend()
        for backend in self._in_order(operands):
            if (forced is AUTO or backend.name == forced) and backend.refuse(operands) is None:
                return backend.run(operands)
        reasons = self.explain(operands).refusals
        if forced is AUTO:
            told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise BackendError(f"no backend runs {self.name} here ({told})")
        raise BackendError(f"backend {forced!r} refuses {self.name}: {reasons[forced]}")

    def explain(self, operands: Operands) -> Choice:
        """Tell which backend would run this call, and why the others would not."""
        self.check(operands)
        forced = forced_backend()
        chosen, refusals = None, {}
        if forced is not AUTO and forced not in {b.name for b in self.backends}:
            refusals[forced] = "it has no such kernel"
        for backend in self._in_order(operands):
            if forced is not AUTO and backend.name != forced:
                refusals[backend.name] = f"{forced} is forced"
            elif (reason := backend.refuse(operands)) is not None:
                refusals[backend.name] = reason
            elif chosen is None:
                chosen = backend.name
            else:
                refusals[backend.name] = f"{chosen} comes first"
        return Choice(chosen, refusals)

    def _in_order(self, operands: Operands) -> Iterable[Backend[Operands]]:
        first = self.prefer(operands)
        if first is None:
            return self.backends
        return sorted(self.backends, key=lambda backend: backend.name != first)


@door
@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force every operation inside the block onto one backend, or give the choice back with
    `"auto"`.

    It holds in this thread and in all that force nothing themselves; see `Forced`. Raises
    BackendError for an unknown name, and inside the block wherever that backend refuses a call.
    """
    with _forced.set(_known(name)):
        yield


def forced_backend() -> str:
    """Return the backend every operation must run on here, or `AUTO`."""
    return _forced.get() or _from_environment()


_forced: Forced[str] = Forced("secateurs_backend")


@cache
def _from_environment() -> str:
    return _known(os.environ.get("SECATEURS_BACKEND") or AUTO)


def _known(name: str) -> str:
    for known in (AUTO, *NAMES):
        if name == known:
            return known
    raise BackendError(f"expected a backend among {', '.join((AUTO, *NAMES))}, got {name!r}")
