"""What the linears of a masked model read on calibration data, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.data.batches import Batch, check_batches, unlabelled
from secateurs.errors import DataError
from secateurs.reconstruction.layer_calls import LayerCall, passes

MOST_TOKENS = 4096  # that are kept of what a linear reads


@dataclass
class _Run:
    """One batch on its way: the call of each layer, the rows that are kept, and the states in front
    of the layer at hand, `[B, T, d]`."""

    calls: list[LayerCall]
    rows: Tensor  # int64, of the tokens of the batch one behind the other
    states: Tensor


class Calibration:
    """Batches on their way through the layers of a model.

    Args:
        model: a stock model, masked as its plan says.
        batches: dicts of tensors as the model takes them; labels and padding are left out.

    Raises DataError for no batches, or some that the model does not take.
    """

    def __init__(self, model: nn.Module, sites: Sites, batches: Iterable[Batch]) -> None:
        self._model, self._sites = model, sites
        found = check_batches(batches)
        share = -(-MOST_TOKENS // len(found))
        inputs = [unlabelled(batch, model) for batch in found]
        self._runs = [run for batch in inputs for run in self._start(batch, share)]

    def _start(self, batch: Batch, share: int) -> list[_Run]:
        runs = passes(self._model, self._sites, batch)
        size = runs[0].states.shape[:2]
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != size:
            mask = torch.ones(size, device=runs[0].states.device)
        real = mask.flatten().nonzero()[:, 0]
        rows = real[:: max(1, -(-len(real) * len(runs) // share))]
        return [_Run(calls, rows, states) for states, calls in runs]

    def layer(self, index: int) -> dict[str, Tensor]:
        """What each linear of a layer reads, `[M, K]` in float32 by role; takes all batches through
        the layer. Call it for one layer after the other.

        Raises DataError where that is not finite.
        """
        layer, read = self._sites.layer(self._model, index), dict[str, list[Tensor]]()
        linears = {linear.path: linear for linear in self._sites.architecture.linears}
        for run in self._runs:
            with ExitStack() as stack:
                for path, linear in linears.items():
                    rows, inputs = run.rows, read.setdefault(linear.role, [])

                    def keep(
                        _: nn.Module,
                        args: tuple[Tensor, ...],
                        rows: Tensor = rows,
                        inputs: list[Tensor] = inputs,
                    ) -> None:
                        inputs.append(args[0].reshape(-1, args[0].shape[-1])[rows].float())

                    hook = layer.get_submodule(path).register_forward_pre_hook(keep)
                    stack.callback(hook.remove)
                run.states = run.calls[index](layer, run.states)
        by_path = {path: torch.cat(read[linear.role]) for path, linear in linears.items()}
        for path, whole in by_path.items():
            if not bool(whole.isfinite().all()):
                raise DataError(
                    "expected finite activations to round by, got NaN or infinity in front of "
                    f"{self._sites.layer_path(index)}.{path}: the data or the weights hold some"
                )
        return {linear.role: by_path[linear.path] for linear in self._sites.architecture.linears}
