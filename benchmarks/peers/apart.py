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
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.measurement.timing import sampler

SETTLE = 0.02  # seconds, in which threads that spin fall asleep
_SAMPLE = "sample"


@dataclass(frozen=True)
class Order:
    """What a peer is built of: the arguments of its `build`, and the threads that it may use."""

    model: nn.Module
    inputs: Mapping[str, Tensor]
    precision: str | None
    calibration: Sequence[Mapping[str, Tensor]]
    threads: int


class Apart:
    """A peer, called on the model's own inputs.

    Args:
        name: a module of benchmarks.peers.

    Raises ImportError or NotImplementedError as its `build` does, RuntimeError for what else goes
    wrong in its process.
    """

    def __init__(self, name: str, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # As bytes: sent otherwise, the model's own tensors would move to shared memory.
        self._process = context.Process(
            target=_serve, args=(theirs, name, pickle.dumps(order)), daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def __call__(self, **inputs: Tensor) -> tuple[Tensor]:
        """The first output, alone in a tuple as a model without names gives it."""
        self._connection.send({name: tensor.numpy() for name, tensor in inputs.items()})
        return (torch.from_numpy(self._answer()),)

    def sample(self) -> float:
        """Milliseconds of a call on the inputs that it was built for."""
        self._connection.send(_SAMPLE)
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

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("the peer's process ended without an answer") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Any, name: str, order: bytes) -> None:
    """Build a peer, then answer with outputs or samples until the other side hangs up."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            wanted = pickle.loads(order)
            torch.set_num_threads(wanted.threads)
            with _silenced():
                build = importlib.import_module(f"benchmarks.peers.{name}").build
                run = build(wanted.model, wanted.inputs, wanted.precision, wanted.calibration)
            sample = None
        except (ImportError, NotImplementedError) as error:
            connection.send(type(error)(str(error)))
            return
        except Exception as error:
            connection.send(RuntimeError(f"{name} cannot be built: {error}"))
            return
        connection.send("built")
        with torch.inference_mode():
            while True:
                request = connection.recv()
                if isinstance(request, str):
                    if sample is None:
                        sample = sampler(
                            lambda: run(**wanted.inputs), torch.device("cpu"), settle=SETTLE
                        )
                    connection.send(sample())
                else:
                    given = {key: torch.from_numpy(value) for key, value in request.items()}
                    connection.send(np.array(run(**given).float()))


@contextmanager
def _silenced() -> Any:
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
