"""How fast is it, against what, and does it still compute the same?

Two callables that are compared are timed alternately in one run, so that a clock that drifts or a
neighbour that wakes up hits both. Every figure comes with its spread.
"""

from __future__ import annotations

import ctypes
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.checks import check_weights, door, first_line
from secateurs.errors import DataError, SecateursError
from secateurs.measurement.environment import device_name

Inputs = Mapping[str, Any] | tuple[Any, ...] | Tensor


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of one callable, in milliseconds, over `repeats` samples."""

    ms: float
    ms_p20: float
    ms_p80: float
    repeats: int
    peak_bytes: int | None
    """Bytes that one call needs on top of the memory held before it; None where nobody can tell."""


@dataclass(frozen=True)
class Measurement:
    """The result of `measure`: times, and against a baseline the speedup and the agreement."""

    timing: Timing
    device: str
    baseline: Timing | None = None
    speedup: float | None = None
    """Ratio of the medians, baseline over ours: 2.0 is twice as fast."""
    speedup_p20: float | None = None
    speedup_p80: float | None = None
    """Spread of the ratio over the pairs of neighbouring samples."""
    rel_err: float | None = None
    """Relative RMS distance of the outputs to the baseline's, in float64 (see `relative_error`)."""

    def __str__(self) -> str:
        text = f"{self.timing.ms:.3f} ms ({self.timing.ms_p20:.3f} to {self.timing.ms_p80:.3f})"
        if self.baseline is None:
            return text
        text += f", baseline {self.baseline.ms:.3f} ms, speedup {self.speedup:.2f}x"
        text += f" ({self.speedup_p20:.2f} to {self.speedup_p80:.2f})"
        return text if self.rel_err is None else f"{text}, relative error {self.rel_err:.1e}"


@door
def measure(
    model: Callable[..., Any],
    inputs: Inputs,
    baseline: Callable[..., Any] | None = None,
    *,
    warmup: int = 3,
    min_repeats: int = 10,
    min_time: float = 1.0,
    min_sample: float = 1e-3,
    settle: float = 0.0,
    compare: bool = True,
    memory: bool = False,
) -> Measurement:
    """Time `model(inputs)`, alternating with `baseline(inputs)` when one is given.

    Both run in inference mode, modules in the training mode they are in. A sample covers as many
    calls as fit in `min_sample` seconds (so sub-millisecond kernels are timed with warm caches) and
    ends with the device idle.

    Args:
        model: a module or any callable.
        inputs: a mapping (passed as keywords), a tuple (passed as positions) or a single tensor.
        baseline: what to compare with, called on the same inputs.
        warmup: untimed calls of each before the first sample.
        min_repeats: at least this many samples of each.
        min_time: at least this many seconds of sampling in all.
        settle: seconds of rest, then one untimed call, before each sample: for comparisons with a
            runtime whose idle threads spin, and would slow whoever comes next.
        compare: with a baseline, also compute `rel_err` from one call of each.
        memory: also find `peak_bytes` of one call of each.

    Raises:
        DataError: the inputs hold no tensor, or the outputs of the two cannot be compared.
    """
    if min_repeats < 1 or min(warmup, min_time, min_sample, settle) < 0:
        raise DataError(
            "expected min_repeats >= 1, and warmup, min_time, min_sample and settle >= 0, got "
            f"{min_repeats}, {warmup}, {min_time}, {min_sample} and {settle}"
        )
    for module in (model, baseline):
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            check_weights(module)
    device = _device(model, inputs)
    sync = synchroniser(device)
    calls = [_bind(f, inputs) for f in (model, baseline) if f is not None]
    with torch.inference_mode(), _refusals():
        for call in calls:
            for _ in range(warmup):
                call()
        sync()
        outputs = [call() for call in calls] if compare and len(calls) == 2 else []
        rel_err = relative_error(*outputs) if outputs else None
        del outputs
        peaks = [_peak_bytes(call, device) if memory else None for call in calls]
        samples = interleave(
            calls,
            device,
            min_repeats=min_repeats,
            min_time=min_time,
            min_sample=min_sample,
            settle=settle,
        )
    measurement = summarised(samples, device, peaks)
    return replace(measurement, rel_err=rel_err)


def summarised(
    samples: Sequence[Sequence[float]],
    device: torch.device,
    peaks: Sequence[int | None] = (None, None),
) -> Measurement:
    """The measurement of samples that `alternate` took, of one callable, or of it and its baseline.

    Args:
        peaks: bytes that one call of each needs, where somebody could tell.
    """
    timings = [_timing(s, peak) for s, peak in zip(samples, peaks, strict=False)]
    if len(timings) == 1:
        return Measurement(timings[0], device_name(device))
    ratios = sorted(b / a for a, b in zip(*samples, strict=True))
    return Measurement(
        timings[0],
        device_name(device),
        baseline=timings[1],
        speedup=timings[1].ms / timings[0].ms,
        speedup_p20=_quantile(ratios, 0.2),
        speedup_p80=_quantile(ratios, 0.8),
    )


def interleave(
    calls: Sequence[Callable[[], Any]],
    device: torch.device,
    *,
    min_repeats: int,
    min_time: float,
    min_sample: float = 1e-3,
    settle: float = 0.0,
) -> list[list[float]]:
    """Milliseconds per call, one list for each of `calls`; in the orders of `alternate`.

    Args:
        device: where they run; a sample ends with it idle.
        min_repeats, min_time, min_sample, settle: as in `measure`.
    """
    samplers = [sampler(call, device, min_sample=min_sample, settle=settle) for call in calls]
    return alternate(samplers, min_repeats=min_repeats, min_time=min_time)


def synchroniser(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until a device is idle."""
    if device.type == "cpu":
        return lambda: None
    module = torch.get_device_module(device)
    return lambda: module.synchronize(device)


def sampler(
    call: Callable[[], Any], device: torch.device, *, min_sample: float = 1e-3, settle: float = 0.0
) -> Callable[[], float]:
    """Return a function that takes one sample of `call`, in milliseconds per call; the arguments
    are those of `interleave`."""
    sync = synchroniser(device)

    def seconds(times: int) -> float:
        sync()
        start = time.perf_counter()
        for _ in range(times):
            call()
        sync()
        return (time.perf_counter() - start) / times

    inner = max(1, math.ceil(min_sample / max(seconds(1), 1e-9)))

    def sample() -> float:
        if settle:
            time.sleep(settle)
            call()
        return seconds(inner) * 1e3

    return sample


def alternate(
    samplers: Sequence[Callable[[], float]], *, min_repeats: int, min_time: float
) -> list[list[float]]:
    """The samples of each of `samplers`, wherever it takes them. The order within a round
    alternates between two; of more it is another one each time, for what ran before, and left
    caches as they are, must not be the same for all samples of one."""
    samples: list[list[float]] = [[] for _ in samplers]
    order, chance = list(range(len(samplers))), random.Random(0)
    end = time.perf_counter() + min_time
    while len(samples[0]) < min_repeats or time.perf_counter() < end:
        for i in order:
            samples[i].append(samplers[i]())
        if len(order) > 2:
            chance.shuffle(order)
        else:
            order.reverse()
    return samples


def relative_error(got: Any, want: Any) -> float:
    """Relative RMS distance `|got - want| / |want|`, the largest over all tensors of two outputs.

    Computed in float64 over the floating tensors. Outputs may be tensors, tuples, lists or mappings
    such as the output classes of transformers. NaN when any value is NaN on one side only; equal
    infinities and NaNs on both sides count as equal.

    Raises:
        DataError: the outputs hold different numbers or shapes of tensors, or none.
    """
    return _worst(got, want, lambda d, w: d.norm() / w.norm())


def max_relative_difference(got: Any, want: Any) -> float:
    """Largest element of `|got - want|` over the RMS of `want`; otherwise as `relative_error`."""
    return _worst(got, want, lambda d, w: d.abs().max() / w.square().mean().sqrt())


def _bind(function: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    if isinstance(inputs, Mapping):
        return lambda: function(**inputs)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    return lambda: function(*args)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what a callable raises at its inputs into a DataError."""
    try:
        yield
    except (SecateursError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"expected inputs that the model and its baseline take, got {first_line(error)}"
        ) from error


def _device(model: Callable[..., Any], inputs: Inputs) -> torch.device:
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            return parameter.device
    tensors = _tensors(inputs)
    if not tensors:
        raise DataError("expected inputs with at least one tensor, to know the device, got none")
    return tensors[0].device


def _timing(samples: Sequence[float], peak: int | None) -> Timing:
    s = sorted(samples)
    return Timing(_quantile(s, 0.5), _quantile(s, 0.2), _quantile(s, 0.8), len(s), peak)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return []


def _worst(got: Any, want: Any, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    ours, theirs = ([t for t in _tensors(x) if t.is_floating_point()] for x in (got, want))
    shapes = [[tuple(t.shape) for t in ts] for ts in (ours, theirs)]
    if shapes[0] != shapes[1] or not ours:
        raise DataError(f"expected outputs with tensors of shapes {shapes[1]}, got {shapes[0]}")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.numel() == 0:
            continue
        a, b = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
        same = (a == b) | (a.isnan() & b.isnan())
        difference = torch.where(same, 0.0, a - b)
        if bool(same.all()):
            continue
        finite = torch.where(b.isfinite(), b, 0.0)
        error = float(distance(difference, finite))
        # max() would drop a NaN or keep it depending on the order of its arguments.
        if math.isnan(error):
            return math.nan
        worst = max(worst, error)
    return worst


def _peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_resident(call) if device.type == "cpu" else None


def _peak_resident(call: Callable[[], Any]) -> int | None:
    """Growth of the resident set: Linux lets a process reset its own high-water mark."""
    with suppress(OSError, AttributeError):
        # Freed heap that glibc keeps would hide what the call allocates.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kib("VmRSS")
        call()
        return max(0, _status_kib("VmHWM") - before) * 1024
    except (OSError, LookupError):
        return None


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise LookupError(key)
