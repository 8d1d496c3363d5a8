"""compress: the smaller model that meets a measured time at the least loss, without training.

Source: the frame is that of Kurtic et al. 2023, "ZipLM" (arXiv 2302.04089): errors of each size of
a layer, measured times, a dynamic programme, a local search over sensitivities (from Frantar and
Alistarh 2022, "SPDY", arXiv 2201.13096). Departures: units go in the order of K-prune's mixed score
or of a layer-wise optimal brain surgeon, and errors are theirs, or powers of the shares that go,
whichever leaves the model nearer to the dense one; what stays is re-fitted to the dense model's
residual stream (`refit`), already when the search judges a choice; the time of the result is
measured, and the search repeated where it is off; the precision is chosen too, where that is asked
for, by models found for each and judged as they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from secateurs.checks import door
from secateurs.data.batches import Batch
from secateurs.measurement.inputs import Shape
from secateurs.pruning import Budget
from secateurs.search.meeting import check_target
from secateurs.search.result import Compressed
from secateurs.search.search import Search


@door
def compress(
    model: nn.Module,
    batches: Iterable[Batch],
    budget: Budget | Mapping[str, Any] | str,
    *,
    shapes: Mapping[Shape, float] | Sequence[Shape] = ((8, 128),),
    effort: str = "quick",
    method: str | None = None,
    precision: str | None = None,
    distill_on: Iterable[Batch] = (),
    ridge: float = 0.01,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> Compressed:
    """Find what `model` can lose to meet a time on this machine, re-fit what stays, convert it and
    measure it. Neither labels nor training, but for `effort="long"`.

    Args:
        model: a transformers model of a supported family, on the device and in the dtype it will
            run in; not changed.
        batches: dicts of tensors as the model takes them, some hundred examples; labels are left
            out. A fifth of them, 64 examples at most, judge and are not fitted to.
        budget: `Budget(latency="4ms")` or `Budget(speedup=3)`, which is over the model as
            transformers runs it; or the same as a dict, or as text.
        shapes: (batch, tokens) pairs that the time is for, or weights of such pairs.
        effort: "quick" takes the best of six choices, "normal" tries 24 others, "long" also
            distils.
        method: of METHODS, for heads and neurons, that says in which order units go; None takes
            what is better of `kprune` and `obs`.
        precision: in which the result computes: "bfloat16", "int8" (of linears, as of `convert`),
            or "auto": the model's own, bfloat16 or int8, as far as this machine has products for
            them, whichever leaves the outputs nearest to the dense model's within the time. What
            meets it with nothing removed goes before what would have to lose some; of the others,
            what is much slower as a whole, or far behind at a first look, is not searched. By
            default the model's own.
        distill_on: more batches, for the distillation of effort "long", which learns from
            thousands of examples what a re-fit has from hundreds.
        ridge: of `refit`.
        seed: of the other choices and of the distillation.
        force: go on where the machine is too noisy for its times to be trusted.
        progress: show progress bars.

    Raises:
        BudgetError: a budget of fractions, or a time that is out of reach; the sentence names the
            nearest one.
        MeasurementError: a machine that is too noisy.
        MethodError, DataError, FamilyError, PlanError: as of `prune` and `refit`.
    """
    budget = check_target(budget, effort)
    search = Search(
        model,
        batches,
        shapes=shapes,
        method=method,
        precision=precision,
        distill_on=distill_on,
        ridge=ridge,
        seed=seed,
        force=force,
        progress=progress,
    )
    return search.meet(budget, effort)
