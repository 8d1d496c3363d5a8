"""SNIP: spectral-normalised identity priors (Lin et al. 2020, arXiv 2010.01791).

A prior on functions, not on weights: every residual mapping F, of a head P V W_O, of a whole
attention or of an FFN, is pulled towards 0, which makes its block the identity. The norm of F over
the real tokens of training batches is compared with one threshold for the whole model; what stays
below it is removed for good. The threshold rises in `rounds` equal spans of time so that the share
removed follows a schedule to the budget. Spectral normalisation W min(1, c / sigma(W)) of the
attention output and both FFN projections makes norms of different layers comparable; it is folded
into the weights at the end. The prior itself is a penalty on the norms, weighted by the share of
the parameters each mapping holds: what the loss does not need shrinks. The mapping with the
smallest norm for the parameters it holds goes first.

    l2: mean over tokens of |F|_2 / sqrt(d)      rel: mean over tokens of |F|_2 / |x|_2
    linf: 99.9th percentile of |F| over tokens and coordinates
    taylor: mean over examples of |dL/d gate|, the gate being a factor of F

A norm knows nothing of the loss; `taylor`, which is no part of the paper, asks the loss alone, in
the same passes, and so has no penalty by default: with one it would be a part of L.

Compared without their parameters, l2 takes every attention of MiniLM before all but one FFN: half
of the sub-layers, and no token sees another any more.

Prunes heads, modules, or both. Needs a labelled loss, a training, and what the mappings put out
while it runs. Cost of a step: norms of the outputs; with spectral normalisation one power iteration
and one product for each normalised weight.

There is no public code and no full text at hand: the set of mappings, the operator, the use of
spectral normalisation and its aim are from the paper's abstract and a survey, everything else is
rebuilt: the estimators, the schedule, the defaults (l2, 5 rounds, linear from 30 to 70 % of the
steps: earlier, weights have not yet moved under the prior), the normalised weights (those of a
co-author's later BERT), clipping only above c so that a trained model stays itself. c is 1.5 times
the median of the largest singular values at the start, the least of 1, 1.25 and 1.5 that costs a
fine-tuned MiniLM less than a point on QQP at once (2.4, 1.1 and 0.5). A penalty of 10 is far above
what suits long trainings, but in some hundred steps less has no effect: without it, last layers
have the largest norms though the task needs them least. The budget counts heads and sub-layers;
with `modules_in="parameters"` it counts the weights that sub-layers hold, and the fewest of the
lowest that meet it go, so that runs with other norms compare at equal size. Norms are taken in the
training passes, with dropout of the layers before. A sub-layer that is gone leaves its residual and
norm: LN(x), not x.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import HeadMask, ModuleMask, SparsityPlan
from secateurs.plan.masks import KeepMask
from secateurs.processes import averaged
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.gate_gradients import measuring
from secateurs.pruning.schedules import Schedule

ESTIMATORS = ("l2", "linf", "rel", "taylor")
COUNTED = ("units", "parameters")
PENALTY = 10.0  # by default, of norms
NORMALISED = ("output", "up", "down")
QUANTILE = 0.999
ABOVE_MEDIAN = 1.5  # the bound by default, in medians of the largest singular values
WARM_UP = 20  # power iterations before the first step


def power_iteration(weight: Tensor, u: Tensor, steps: int) -> Tensor:
    """The left singular vector `[N]` of `weight` `[N, K]` after `steps` more iterations from
    `u`."""
    for _ in range(steps):
        v = torch.nn.functional.normalize(weight.T @ u, dim=0)
        u = torch.nn.functional.normalize(weight @ v, dim=0)
    return u


def spectral_norm(weight: Tensor, u: Tensor) -> Tensor:
    """The largest singular value of `weight` as `u` sees it; differentiable in the weight."""
    with torch.no_grad():
        v = torch.nn.functional.normalize(weight.T @ u, dim=0)
    return u @ (weight @ v)


class SnipIdentityPruner(Pruner):
    """Identity priors.

    Args:
        estimator: of a mapping's worth: the norms l2, rel or linf, or taylor.
        spectral: whether to normalise.
        bound: c; by default 1.5 times the median of the largest singular values at the start.
        penalty: weight of the norms in the loss; by default 10, and 0 with taylor.
        per_parameter: compare norms over the parameters a mapping holds, else norms alone.
        begin, end: of the schedule, as shares of the training.
        rounds: removals between them.
        modules_in: what a share of modules is of: units, or the parameters that they hold.
    """

    produces = frozenset({"heads", "modules"})
    needs = Needs.ACTIVATIONS | Needs.GRADIENTS | Needs.TRAINING
    labelled = True

    def __init__(
        self,
        estimator: str = "l2",
        spectral: bool = True,
        bound: float | None = None,
        penalty: float | None = None,
        per_parameter: bool = True,
        begin: float = 0.3,
        end: float = 0.7,
        rounds: int = 5,
        modules_in: str = "units",
    ) -> None:
        if estimator not in ESTIMATORS:
            raise MethodError(
                f"expected an estimator in {', '.join(ESTIMATORS)}, got {estimator!r}"
            )
        if modules_in not in COUNTED:
            raise MethodError(f"expected modules_in in {', '.join(COUNTED)}, got {modules_in!r}")
        if penalty is None:
            penalty = 0.0 if estimator == "taylor" else PENALTY
        if penalty < 0 or rounds < 1 or (bound is not None and bound <= 0):
            raise MethodError(
                "expected a penalty of at least 0, one round or more and a bound above 0, got "
                f"{penalty}, {rounds} and {bound}"
            )
        self.estimator, self.spectral, self.bound = estimator, bool(spectral), bound
        self.weight, self.per_parameter = penalty, bool(per_parameter)
        self.span, self.removals, self.modules_in = (begin, end), rounds, modules_in
        self._worth: dict[str, nn.Parameter] = {}  # only their gradients say anything
        self._states: dict[str, Tensor] = {}
        self._u: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._norms: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._real: Tensor | None = None
        self._alive: dict[str, Tensor] = {}
        self._schedule: Schedule | None = None
        self._removed = 0

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites.of_one_stack("SNIP"), budget, seed)
        if self.modules_in == "parameters" and budget.modules is None:
            raise MethodError(f"expected a budget of modules to count in parameters, got {budget}")

    def open(self, gates: Gates) -> None:
        super().open(gates)
        device = next(self.model.parameters()).device
        for name, shape in self.units().items():
            self._alive[name] = torch.ones(shape, dtype=torch.bool, device=device)
            gates.watch(name, partial(self._measure, name))
            if self.estimator == "rel":
                layer = name.rpartition(".")[0]
                entry = f"{layer}.{'up' if name.endswith('.ffn') else 'query'}"
                gates.watch(entry, partial(self._inputs.__setitem__, name))
            if self.estimator == "taylor":
                self._worth[name] = nn.Parameter(torch.ones(shape, device=device))
        self._shut()
        if self.spectral:
            self._start_spectral()

    def begin(self, steps: int) -> None:
        super().begin(steps)
        begin, end = (round(share * steps) for share in self.span)
        self._schedule = Schedule(0.0, 1.0, begin, end, "linear").within(steps)
        spacing = (end - begin) / self.removals
        self._events = [round(begin + (i + 1) * spacing) for i in range(self.removals)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        worth = [*self._worth.values()]
        return [{"params": worth, "lr": 0.0, "weight_decay": 0.0}] if worth else []

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        self._real = mask.bool() if mask is not None and mask.dim() == 2 else None
        self._now = {}
        for name, worth in self._worth.items():
            state = self._states[name].to(worth)
            self.gates[name] = measuring(worth, state, inputs) if self.model.training else state
        if self.spectral:
            self._set_spectral(advance=self.model.training)

    def penalty(self) -> Tensor | None:
        if not self.weight:
            return None
        terms = [
            (norms * self._alive[name]).sum() * self._share(name)
            for name, norms in self._now.items()
        ]
        return self.weight * torch.stack(terms).sum()

    def after_backward(self, step: int) -> None:
        found: Mapping[str, Tensor] = self._now
        if self._worth:
            found = {n: w.grad for n, w in self._worth.items() if w.grad is not None}
        for name, norms in found.items():
            self._sums[name] = self._sums.get(name, 0) + norms.detach()
        self._count += 1

    def after_step(self, step: int) -> None:
        assert self._schedule is not None
        due = sum(step + 1 >= event for event in self._events)
        if due > self._removed:  # later, if that step was left out
            self._removed = due
            self._take_norms()
            share = self._schedule(step + 1)
            asked = self.budget.asked()
            self._remove(self.allocated({kind: share * target for kind, target in asked.items()}))

    def close(self) -> None:
        if self.spectral:
            self._set_spectral(advance=False)
            for name in self._u:
                self.gates.fold(name)

    def figures(self) -> dict[str, float]:
        total = sum(alive.numel() for alive in self._alive.values())
        return {"alive": sum(int(alive.sum()) for alive in self._alive.values()) / total}

    def scores(self) -> Mapping[str, Tensor]:
        if not self._norms:
            self._take_norms()
        scores = {}
        for name, norms in self._norms.items():
            size = self._share(name) if self.per_parameter else 1.0
            scores[name] = torch.where(self._alive[name], norms / size, -1.0)  # gone is gone
        return scores

    def allocated(self, fractions: Mapping[str, float]) -> SparsityPlan:
        """A layer without heads loses its attention, and with it the output bias."""
        if self.modules_in == "parameters":
            fractions = self._as_units(fractions)
        plan = super().allocated(fractions)
        empty = {
            name.replace(".heads", ".attention"): ModuleMask(torch.tensor(False))
            for name, mask in plan.masks.items()
            if isinstance(mask, HeadMask) and not bool(mask.keep.any())
        }
        return SparsityPlan({**plan.masks, **empty}, plan.model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "u": dict(self._u),
            "bound": self.bound,
            "sums": dict(self._sums),
            "count": self._count,
            "norms": dict(self._norms),
            "alive": dict(self._alive),
            "removed": self._removed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        for key in ("u", "sums", "norms", "alive"):
            moved = {name: tensor.to(device) for name, tensor in state[key].items()}
            setattr(self, f"_{key}", moved)
        self.bound, self._count = state["bound"], state["count"]
        self._removed = state["removed"]
        self._shut()

    def _measure(self, name: str, produced: Tensor) -> None:
        """The norms of the mappings at one site from what its gate multiplies."""
        if not self.model.training or (self._worth and not self.weight):
            return
        real = self._real
        if real is not None and real.shape != produced.shape[:2]:
            real = None

        def tokens(x: Tensor) -> Tensor:
            """Real tokens of `x` `[B, T, C]` as rows, float32."""
            return (x.flatten(0, 1) if real is None else x[real]).float()

        mapped = self._mapped(name, tokens(produced))  # [units, tokens, d]
        if self.estimator == "linf":
            norms = _quantile(mapped.abs())
        else:
            # The root is not differentiable at 0: an output of zeros has no say.
            lengths = mapped.square().sum(-1).clamp_min(1e-24).sqrt()
            if self.estimator != "rel":
                norms = lengths.mean(1) / mapped.shape[-1] ** 0.5
            else:
                norms = (lengths / tokens(self._inputs[name].detach()).norm(dim=-1)).mean(1)
        self._now[name] = norms if name.endswith(".heads") else norms[0]

    def _mapped(self, name: str, produced: Tensor) -> Tensor:
        """Compute what each mapping at a site adds to the residual, `[units, tokens, d]`."""
        if not name.endswith(".heads"):
            return produced[None]
        layer = name.split(".")[1]
        shape = self.sites.layers[int(layer)]
        weight = self._effective(f"layers.{layer}.output").float()
        heads: Tensor = produced.unflatten(1, (shape.heads, shape.head_dim)).transpose(0, 1)
        outputs: Tensor = weight.unflatten(1, (shape.heads, shape.head_dim)).permute(1, 2, 0)
        return heads @ outputs

    def _effective(self, name: str) -> Tensor:
        _, layer, role = name.split(".")
        weight = self.linear_weight(int(layer), role)
        return weight * self.gates[name] if name in self.gates else weight

    def _share(self, name: str) -> float:
        """Share of the layers' weights that one mapping at this site holds."""
        _, layer, part = name.split(".")
        sizes = [shape.linears() for shape in self.sites.layers]
        total = sum(n * k for roles in sizes for n, k in roles.values())
        ffn = ("up", "gate", "down")
        mine = [n * k for r, (n, k) in sizes[int(layer)].items() if (r in ffn) == (part == "ffn")]
        return sum(mine) / total / (self._alive[name].numel())

    def _as_units(self, fractions: Mapping[str, float]) -> dict[str, float]:
        """`fractions` with a share of parameters in modules as one of modules: that of the fewest
        which hold so many."""
        shares = {n: self._share(n) for n in self._alive if not n.endswith(".heads")}

        def gone(count: int) -> float:
            share = {**fractions, "modules": count / len(shares)}
            masks = super(SnipIdentityPruner, self).allocated(share).masks
            lost = (n for n, m in masks.items() if isinstance(m, ModuleMask) and not bool(m.keep))
            return sum(shares[name] for name in lost)

        enough = fractions["modules"] - 1e-9
        counts = range(len(shares) + 1)
        return {**fractions, "modules": bisect_left(counts, enough, key=gone) / len(shares)}

    def _take_norms(self) -> None:
        if not self._count:
            if not self._norms:
                raise MethodError("SNIP expects training steps before it decides, got none")
            return
        for name, total in self._sums.items():
            self._norms[name] = averaged(total / self._count)
        self._sums, self._count = {}, 0

    def _remove(self, plan: SparsityPlan) -> None:
        for name, alive in self._alive.items():
            mask = plan.masks.get(name)
            if isinstance(mask, KeepMask):
                alive &= mask.keep.to(alive.device)
        self._shut()

    def _shut(self) -> None:
        like = next(self.model.parameters())
        self._states = dict(self._alive)
        for name, alive in self._alive.items():
            if name.endswith(".heads") and not bool(alive.any()):
                self._states[name.replace(".heads", ".attention")] = alive.any()
        for name, state in self._states.items():
            if not bool(state.all()):
                self.gates[name] = state.to(like)

    def _start_spectral(self) -> None:
        sigmas = []
        for site in self.sites.of_kind("linear"):
            if site.part in NORMALISED:
                weight = self.linear_weight(site.layer, site.part).detach().float()
                start = torch.randn(site.shape[0], generator=self.generator).to(weight)
                self._u[site.name] = power_iteration(weight, start, WARM_UP)
                sigmas.append(spectral_norm(weight, self._u[site.name]))
        if self.bound is None:
            self.bound = ABOVE_MEDIAN * float(torch.stack(sigmas).median())

    def _set_spectral(self, advance: bool) -> None:
        assert self.bound is not None
        for name, u in self._u.items():
            _, layer, role = name.split(".")
            weight = self.linear_weight(int(layer), role)
            with torch.autocast(weight.device.type, enabled=False):
                exact = weight.float()
                if advance:
                    with torch.no_grad():
                        u = self._u[name] = power_iteration(exact, u, 1)
                factor = (self.bound / spectral_norm(exact, u)).clamp(max=1.0)
            self.gates[name] = factor.to(weight.dtype).expand(weight.shape)


def _quantile(sizes: Tensor) -> Tensor:
    """The 99.9th percentile of `sizes` `[units, tokens, d]`, for each unit."""
    flat = sizes.flatten(1)
    rank = max(1, round(QUANTILE * flat.shape[1]))
    return flat.kthvalue(rank, dim=1).values
