"""Dense peers: other runtimes of a dense model, for one shape on the CPU. Each has a file, whose
`build` imports its packages when it is called, and a row here for each precision."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from secateurs.errors import BackendError


@dataclass(frozen=True)
class Peer:
    """One runtime of a dense model.

    Attributes:
        label: what it is called beside others.
        module: with a function `build` of a model, inputs by name, a precision and examples to take
            scales from, that returns a callable of such inputs, which gives the main output.
        packages: that it imports; pip installs them by the same names.
        precision: "int8", or None for that of the model.
    """

    label: str
    module: str
    packages: tuple[str, ...] = ()
    precision: str | None = None


_ONNX = ("onnx", "onnxscript", "onnxruntime")

COMPILED = "compiled"
PEERS: dict[str, Peer] = {
    COMPILED: Peer("torch.compile + freezing", f"{__name__}.compiled"),
    "openvino": Peer("openvino", f"{__name__}.openvino", ("openvino",)),
    "openvino-int8": Peer("openvino", f"{__name__}.openvino", ("openvino", "nncf"), "int8"),
    "onnxruntime": Peer("onnxruntime", f"{__name__}.onnxruntime", _ONNX),
    "onnxruntime-int8": Peer("onnxruntime", f"{__name__}.onnxruntime", _ONNX, "int8"),
}


def installed() -> list[str]:
    """The names of all peers whose packages are installed."""
    return [name for name, peer in PEERS.items() if all(map(find_spec, peer.packages))]


def peer_in(runtime: str, precision: str | None) -> Peer:
    """The peer of that name without a precision, or its row for one. Raises BackendError for a
    runtime that has none."""
    name = runtime if precision is None else f"{runtime}-{precision}"
    if name not in PEERS:
        raise BackendError(f"expected one of {', '.join(PEERS)}, got {name}")
    return PEERS[name]
