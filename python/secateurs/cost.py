"""What a linear, or a layer, costs on this machine in each form it could take, and the form it
therefore takes.

Times are measured at first use and kept on disk, so that a conversion is quick and repeats itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs import ops
from secateurs.environment import device_name
from secateurs.errors import PlanError
from secateurs.files import written_whole

ROUNDS = 11
# Weights below this many elements are not worth a measurement: launching costs more than they do.
# Of those, one with at most this share of its blocks runs block-sparse, another dense.
MEASURED_FROM = 1 << 14
BLOCK_BREAK_EVEN = 0.9


def machine(device: torch.device) -> str:
    """What a measured time depends on besides the call: device, instruction set, threads,
    versions."""
    cpu = ops.build_info()["cpu"]
    parts = (
        device_name(device),
        cpu["isa"],
        f"{torch.get_num_threads()} threads",
        f"secateurs {cpu['version']}",
        f"torch {torch.__version__}",
    )
    return ", ".join(parts)


class CostTable:
    """Milliseconds of linears by description and form, for one device of this machine.

    Args:
        device: where the linears run.
        directory: where tables are kept, one file per machine; None keeps nothing. By default
            `SECATEURS_CACHE`, else `secateurs` under the user's cache directory.
    """

    def __init__(self, device: torch.device, directory: str | Path | None = "default") -> None:
        if directory == "default":
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
            directory = os.environ.get("SECATEURS_CACHE") or Path(home) / "secateurs"
        self._machine = machine(device)
        name = hashlib.sha256(self._machine.encode()).hexdigest()[:16]
        self._path = None if directory is None else Path(directory) / f"costs-{name}.json"
        self._times: dict[str, dict[str, float]] = {}
        # A table that cannot be read is measured again, one that cannot be kept is not: both cost
        # only time.
        with contextlib.suppress(OSError, ValueError):
            if self._path is not None:
                self._times = json.loads(self._path.read_text())["times"]

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
        samples: dict[str, list[float]] = {form: [] for form in forms}
        with torch.inference_mode():
            for module in forms.values():
                module(x, residual=residual)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            for _ in range(ROUNDS):
                for form, module in forms.items():
                    start = time.perf_counter()
                    module(x, residual=residual)
                    if x.is_cuda:
                        torch.cuda.synchronize(x.device)
                    samples[form].append(1e3 * (time.perf_counter() - start))
        self._times[name] = {form: min(s) for form, s in samples.items()}
        self._keep()
        return self._times[name]

    def _keep(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._path, durable=False) as scratch:
                scratch.write_text(
                    json.dumps({"machine": self._machine, "times": self._times}, indent=1)
                )


class FormPicker:
    """Picks the form each linear runs in: the one fixed before, else the one measured fastest.

    Args:
        fixed: form by site, as an earlier conversion on this machine picked it.
    """

    def __init__(
        self,
        *,
        tokens: int = 256,
        costs: CostTable | None = None,
        fixed: Mapping[str, str] | None = None,
    ) -> None:
        if tokens < 1:
            raise PlanError(f"expected at least one token, got {tokens}")
        self.tokens, self.fixed = tokens, fixed or {}
        self._costs = costs

    def pick(
        self,
        site: str,
        forms: Mapping[str, nn.Module],
        *,
        with_residual: bool,
        among: Collection[str] | None = None,
    ) -> tuple[str, str]:
        """The name of one of `forms` of a linear, of those `among` if given, and why it was
        picked."""
        among = among or forms.keys()
        if len(forms) == 1:
            return next(iter(forms)), ""
        if self.fixed.get(site) in among:
            return self.fixed[site], "as picked when it was converted on this machine"
        weight, sparse = forms["torch"].weight, forms.get("block-sparse")
        if weight.numel() < MEASURED_FROM:
            dense = "dense panels" if "dense panels" in among else "torch"
            small = "the weight is too small to be worth a measurement"
            if sparse is None:
                return dense, small
            below = sparse.weight.density <= BLOCK_BREAK_EVEN
            told = f"{small}, the usual break-even is {BLOCK_BREAK_EVEN}"
            return ("block-sparse" if below else dense), told
        n, k = weight.shape
        x = self._tokens(k).to(weight)
        residual = x.new_zeros(self.tokens, n) if with_residual else None
        description = f"{n}x{k} {weight.dtype} at {self.tokens} tokens, "
        description += f"{forms['torch'].activation}, residual={with_residual}"
        if sparse is not None:
            description += f", {sparse.weight.block} at {sparse.weight.density:.2f}"
        return self._fastest(description, forms, x, residual, among)

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
        if self._costs is None:
            self._costs = CostTable(x.device)
        times = self._costs.times(name, forms, x, residual)
        order = sorted(times, key=times.__getitem__)
        told = ", ".join(f"{form} {times[form]:.3f} ms" for form in order)
        return next(form for form in order if form in among), f"{told} at {self.tokens} tokens"
