"""What a linear, or a layer, costs on this machine in each form it could take, and the form it
therefore takes.

Times are measured at first use and kept on disk, so that a conversion is quick and repeats itself.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateurs import files, ops
from secateurs.architectures.sites import Sites
from secateurs.errors import PlanError
from secateurs.formats import Int8VectorWeight
from secateurs.measurement.environment import device_name, package_version
from secateurs.measurement.graph_recording import Recording
from secateurs.ops._core.dispatch import AUTO, forced_backend

ROUNDS = 11
REPEATS = 20  # of a call in a graph: to launch a graph takes as long as a small product
LONGEST = 1e6  # milliseconds; no form of a linear or layer comes near
# Weights below this many elements are not worth a measurement: launching costs more than they do.
# Of those, one with at most this share of its blocks runs block-sparse, another dense.
MEASURED_FROM = 1 << 14
BLOCK_BREAK_EVEN = 0.9
SLOWER = 1.1  # from how many times as long on codes lose


def machine(device: torch.device) -> str:
    """What a measured time depends on besides the call: device, instruction set, threads,
    versions, a backend that is forced."""
    cpu = ops.build_info()["cpu"]
    parts = [
        device_name(device),
        cpu["isa"],
        f"{torch.get_num_threads()} threads",
        f"secateurs {cpu['version']}",
        f"torch {torch.__version__}",
    ]
    if device.type == "cuda":
        parts += [f"triton {package_version('triton')}", "timed in graphs"]
    if forced_backend() != AUTO:
        parts.append(f"{forced_backend()} forced")
    return ", ".join(parts)


@runtime_checkable
class Costs(Protocol):
    """Anything that returns the time of each form of a linear or layer, as `CostTable` does."""

    def times(
        self, name: str, forms: Mapping[str, nn.Module], x: Tensor, residual: Tensor | None
    ) -> dict[str, float]: ...


class CostTable:
    """Milliseconds of linears by description and form, for one device of this machine.

    Args:
        device: where the linears run.
        directory: where tables are kept, one file per machine; None keeps nothing. By default
            `SECATEURS_CACHE`, else `secateurs` under the user's cache directory.
    """

    def __init__(self, device: torch.device, directory: str | Path | None = "default") -> None:
        folder = files.cache_folder() if directory == "default" else directory
        self._machine = machine(device)
        name = hashlib.sha256(self._machine.encode()).hexdigest()[:16]
        self._path = None if folder is None else Path(folder) / f"costs-{name}.json"
        self._times = self._kept()

    def times(
        self, name: str, forms: Mapping[str, nn.Module], x: Tensor, residual: Tensor | None
    ) -> dict[str, float]:
        """Milliseconds of each form of one part of a model on `x`, the forms timed in turns. The
        least of several: what else the machine does only adds.

        Args:
            name: describes the part and the call; a known one is not measured again.
            forms: modules that compute the same.
        """
        known = self._times.get(name, {})
        if known.keys() >= forms.keys():
            return {form: known[form] for form in forms}
        calls = [partial(module, x, residual=residual) for module in forms.values()]
        with torch.inference_mode():
            samplers = _samplers(calls, x.device)
            rounds = [[sample() for sample in samplers] for _ in range(ROUNDS)]
        least = map(min, zip(*rounds, strict=True))
        self._times[name] = dict(zip(forms, least, strict=True))
        # What another process has measured meanwhile is kept too.
        content = {"machine": self._machine, "times": {**self._kept(), **self._times}}
        files.write_table(self._path, content)
        return self._times[name]

    def _kept(self) -> dict[str, dict[str, float]]:
        """Read this machine's times from the file, and ignore anything else in it."""
        content = files.read_table(self._path)
        parts = content.get("times")
        if content.get("machine") != self._machine or not isinstance(parts, dict):
            return {}
        return {
            name: {form: ms for form, ms in forms.items() if _is_time(ms)}
            for name, forms in parts.items()
            if isinstance(forms, dict)
        }


def _told(weight: Int8VectorWeight) -> str:
    return f"vectors of {weight.vector} at {weight.density:.2f}"


def _is_time(ms: object) -> bool:
    return isinstance(ms, (int, float)) and not isinstance(ms, bool) and 0 < ms < LONGEST


def _samplers(
    calls: Sequence[Callable[[], Any]], device: torch.device
) -> list[Callable[[], float]]:
    """Return, for each call, a function that runs it once and returns milliseconds; all are timed
    in the same way.

    On a GPU that is by replays of a graph: of a single small call, Python takes longer than the
    GPU. Where some call cannot be recorded, or on a CPU, it is by the clock.
    """
    if device.type == "cuda":
        try:
            return [_replays(call, device) for call in calls]
        except RuntimeError:  # it waits for the GPU
            torch.cuda.synchronize(device)
    for call in calls:
        call()
    return [partial(_by_the_clock, call, device) for call in calls]


def _replays(call: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    def repeated() -> None:
        for _ in range(REPEATS):
            call()

    recording = Recording(repeated, device)

    def sample() -> float:
        with torch.cuda.device(device):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            recording.replay()
            stop.record()
            stop.synchronize()
        return float(start.elapsed_time(stop)) / REPEATS

    return sample


def _by_the_clock(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)


class FormPicker:
    """Picks the form each linear runs in: the one fixed before, else the one measured fastest.

    Args:
        fixed: form by site, as an earlier conversion on this machine picked it.
        precision: of the forms to pick from, one of `forms.PRECISIONS`; None: that of the dtype.
        only: the form that every linear takes.
        stays: why a linear stays in the dtype of the model, by its site.

    Attributes:
        notes: what calibration data decided for a linear, by its site.
    """

    def __init__(
        self,
        *,
        tokens: int = 256,
        costs: Costs | None = None,
        fixed: Mapping[str, str] | None = None,
        precision: str | None = None,
        only: str | None = None,
        stays: Mapping[str, str] | None = None,
    ) -> None:
        if tokens < 1:
            raise PlanError(f"expected at least one token, got {tokens}")
        self.tokens, self.fixed = tokens, fixed or {}
        self.precision, self.only = precision, only
        self.stays, self.notes = dict(stays or {}), dict[str, list[str]]()
        self._costs = costs

    def take(
        self,
        sites: Sites,
        stays: Sequence[Mapping[str, str]],
        notes: Sequence[Mapping[str, list[str]]],
    ) -> None:
        """Take over what data decided for each layer, by role."""
        for index, (own_stays, own_notes) in enumerate(zip(stays, notes, strict=True)):
            self.stays |= {sites.name(index, role): why for role, why in own_stays.items()}
            self.notes |= {sites.name(index, role): told for role, told in own_notes.items()}

    def why_slower(
        self, rounded: Mapping[str, Any], exact: Mapping[str, Any], with_residual: bool
    ) -> str | None:
        """Why a linear had better not be rounded: the time of its forms in codes and of the others,
        where codes are slower by more than times vary. Small ones are not measured."""
        weight = exact["torch"].weight
        if weight.numel() < MEASURED_FROM:
            return None
        description = f"{self.precision} or not, {self._description(exact, with_residual)}"
        if "int8 block-sparse" in rounded:
            coded = rounded["int8 block-sparse"].weight
            description += f", codes {coded.block} at {coded.density:.2f}"
        if "int8 vectors" in rounded:
            description += f", codes {_told(rounded['int8 vectors'].weight)}"
        call = self._call(weight.shape, weight, with_residual)
        times = self._times(description, {**rounded, **exact}, *call)
        best, other = (min(forms, key=times.__getitem__) for forms in (rounded, exact))
        if times[best] <= SLOWER * times[other]:
            return None
        return f"{best} {times[best]:.3f} ms, {other} {times[other]:.3f} ms at {self.tokens} tokens"

    def pick(
        self,
        site: str,
        forms: Mapping[str, Any],
        *,
        with_residual: bool,
        among: Collection[str] | None = None,
    ) -> tuple[str, str]:
        """Pick one of `forms` of a linear, or one `among` them if given. Return its name and the
        reason."""
        among = among or forms.keys()
        if self.only is not None:
            return self.only, ""
        if len(forms) == 1:
            return next(iter(forms)), ""
        if self.fixed.get(site) in among:
            return self.fixed[site], "as picked when it was converted on this machine"
        if "int8 block-sparse" in forms:
            # Absent blocks cost the kernel nothing: from few of them on it wins.
            below = forms["int8 block-sparse"].weight.density <= BLOCK_BREAK_EVEN
            told = f"the usual break-even is {BLOCK_BREAK_EVEN}"
            return ("int8 block-sparse" if below else "int8 panels"), told
        if "int8 vectors" in forms:
            return self._pick_vectors(forms, with_residual, among)
        weight, sparse = forms["torch"].weight, forms.get("block-sparse")
        if weight.numel() < MEASURED_FROM:
            dense = "dense panels" if "dense panels" in among else "torch"
            small = "the weight is too small to be worth a measurement"
            if sparse is None:
                return dense, small
            below = sparse.weight.density <= BLOCK_BREAK_EVEN
            told = f"{small}, the usual break-even is {BLOCK_BREAK_EVEN}"
            return ("block-sparse" if below else dense), told
        description = self._description(forms, with_residual)
        call = self._call(weight.shape, weight, with_residual)
        return self._fastest(description, forms, *call, among)

    def _pick_vectors(
        self, forms: Mapping[str, Any], with_residual: bool, among: Collection[str]
    ) -> tuple[str, str]:
        """Pick the faster form of a linear in codes whose inputs are kept by groups of outputs."""
        module = forms["int8 vectors"]
        n, k = module.shape
        if n * k < MEASURED_FROM:
            return "int8 panels", "the weight is too small to be worth a measurement"
        description = f"{n}x{k} codes, {module.dtype} at {self.tokens} tokens, "
        description += f"{module.activation}, residual={with_residual}, {_told(module.weight)}"
        call = self._call(module.shape, module.like, with_residual)
        return self._fastest(description, forms, *call, among)

    def pick_layer(
        self, layers: Mapping[str, nn.Module], hidden: int, like: Tensor
    ) -> tuple[str, str]:
        """The same of whole layers, which take states `[B, T, hidden]` in the dtype and on the
        device of `like`."""
        built = "; ".join(" ".join(repr(layer).split()) for layer in layers.values())
        x = self._tokens(hidden)[None].to(like)
        return self._fastest(
            f"{built}, {like.dtype} at {self.tokens} tokens", layers, x, None, layers.keys()
        )

    def _description(self, forms: Mapping[str, Any], with_residual: bool) -> str:
        """Describe the call of a linear that is not rounded."""
        weight, sparse = forms["torch"].weight, forms.get("block-sparse")
        n, k = weight.shape
        description = f"{n}x{k} {weight.dtype} at {self.tokens} tokens, "
        description += f"{forms['torch'].activation}, residual={with_residual}"
        if sparse is not None:
            description += f", {sparse.weight.block} at {sparse.weight.density:.2f}"
        return description

    def _call(
        self, shape: Sequence[int], like: Tensor, with_residual: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs of a linear of `shape` `(N, K)`, as a tensor of it is, and its residual."""
        x = self._tokens(shape[1]).to(like)
        return x, x.new_zeros(self.tokens, shape[0]) if with_residual else None

    def _tokens(self, width: int) -> Tensor:
        return torch.randn(self.tokens, width, generator=torch.Generator().manual_seed(0))

    def _fastest(
        self,
        name: str,
        forms: Mapping[str, nn.Module],
        x: Tensor,
        residual: Tensor | None,
        among: Collection[str],
    ) -> tuple[str, str]:
        times = self._times(name, forms, x, residual)
        order = sorted(times, key=times.__getitem__)
        told = ", ".join(f"{form} {times[form]:.3f} ms" for form in order)
        return next(form for form in order if form in among), f"{told} at {self.tokens} tokens"

    def _times(
        self, name: str, forms: Mapping[str, nn.Module], x: Tensor, residual: Tensor | None
    ) -> dict[str, float]:
        if self._costs is None:
            self._costs = CostTable(x.device)
        return self._costs.times(name, forms, x, residual)
