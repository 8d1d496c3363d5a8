"""A peer in a process of its own.

The idle threads of a runtime spin for a while after each call, and slow whoever shares its process;
those of torch would slow it in turn. So a peer is built, run and timed by another process, which
waits for its turn while this one works.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.checks import first_line
from secateurs.errors import BackendError
from secateurs.measurement.peers import Peer
from secateurs.measurement.timing import alternate, sampler
from secateurs.shells import shell_of

SETTLE = 0.02  # seconds, in which threads that spin fall asleep
_SAMPLE = "sample"


@dataclass(frozen=True)
class Order:
    """What a peer is built of: a model on the CPU, inputs of the shape that it will run, examples
    to take scales from, and the threads that it may use."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    calibration: Sequence[Mapping[str, Tensor]]
    threads: int


class Apart:
    """A peer, called on the model's own inputs.

    Raises BackendError for whatever goes wrong in its process.
    """

    def __init__(self, peer: Peer, order: Order) -> None:
        self._label = peer.label
        try:
            # As bytes: sent otherwise, the model's own tensors would move to shared memory.
            sent = pickle.dumps(replace(order, model=bare(order.model)))
        except Exception as error:  # pickles of strangers' classes raise whatever they come to
            raise self._refusal(first_line(error)) from error
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, peer, sent), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def __call__(self, **inputs: Tensor) -> tuple[Tensor]:
        """The main output, alone in a tuple as a model without names gives it."""
        self._send(pickle.dumps(inputs))
        return (torch.from_numpy(self._answer()),)

    def sample(self) -> float:
        """Milliseconds of a call on the inputs that it was built for."""
        self._send(_SAMPLE)
        return float(self._answer())

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join()

    def _send(self, request: str | bytes) -> None:
        try:
            self._connection.send(request)
        except OSError:
            raise self._refusal("a process that has ended") from None

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._refusal("a process that ended without an answer") from None
        if isinstance(answer, _Failure):
            raise self._refusal(answer.sentence)
        return answer

    def _refusal(self, reason: str) -> BackendError:
        return BackendError(f"expected {self._label} to run the model, got {reason}")


def in_turns(
    peer: Apart,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    min_repeats: int,
    min_time: float,
) -> list[list[float]]:
    """Milliseconds for each call of a peer, and of a model in this process on the same inputs, one
    list each. The threads of each fall asleep before the turn of the other."""
    with torch.inference_mode():
        stock = sampler(partial(model, **inputs), torch.device("cpu"), settle=SETTLE)
        return alternate([peer.sample, stock], min_repeats=min_repeats, min_time=min_time)


def bare(model: nn.Module) -> nn.Module:
    """A copy of a model that shares its tensors, without hooks: those by which transformers keeps
    states, once it was asked for them, cannot be sent."""
    copied = shell_of(model)
    for module in copied.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


@dataclass(frozen=True)
class _Failure:
    """What is sent in place of an answer."""

    sentence: str


def _serve(connection: Any, peer: Peer, sent: bytes) -> None:
    """Build a peer, then answer with outputs or samples until the other side hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            order: Order = pickle.loads(sent)
            torch.set_num_threads(order.threads)
            with _silenced():
                build = importlib.import_module(peer.module).build
                run = build(order.model, order.inputs, peer.precision, order.calibration)
        except Exception as error:  # exporters raise whatever they come to
            connection.send(_Failure(first_line(error)))
            return
        connection.send("built")
        sample = None
        with torch.inference_mode():
            while True:
                request = connection.recv()
                try:
                    if request == _SAMPLE:
                        if sample is None:
                            call = partial(run, **order.inputs)
                            sample = sampler(call, torch.device("cpu"), settle=SETTLE)
                        answer: Any = sample()
                    else:
                        answer = np.array(run(**pickle.loads(request)).float())
                except Exception as error:
                    answer = _Failure(first_line(error))
                connection.send(answer)


@contextmanager
def _silenced() -> Iterator[None]:
    """Hide what exporters and quantisers print about their progress and our installation."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, file in zip((1, 2), kept, strict=True):
                os.dup2(file, number)
                os.close(file)
