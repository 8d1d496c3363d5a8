"""MLPruning: heads, neurons and blocks, in two steps (Yao et al. 2021, arXiv 2105.14636).

First whole heads and neurons go, then b x b blocks of what is left. Every unit has a score, every
site of units a logit tau: the mask is 1 for the ceil(sigmoid(tau) n) largest scores. Backward, with
G = dL/dmask, dL/dscore = G and dL/dtau = sum(G mask). The loss grows by lambda q,
q = max(0, R - R*)^2, with R the share that stays by the logits, R* the one that is to stay, and
lambda = max(lambda_f q / (1 - R*)^2, 50), or 10 where q < 3e-4.

The penalty pulls R only towards R*. At the end of each step all logits are shifted by one number
such that the masks meet the budget to one unit, and stay so; in the rest of the training the model
recovers. A budget of blocks counts those that heads and neurons hold as gone. With blocks, neurons
go b at a time, and those that stay are moved to the front of their layer, which leaves the function
as it is: the blocks of the second step are blocks of the smaller model.

Prunes heads, neurons, blocks, in any company. Needs gradients of a labelled loss; the published
results have a teacher, for its logits, hidden states and attention (`Distillation`). Cost of a
step: in the second one, two passes over the weights for each gate of a linear.

Defaults of the authors' code: lambda_f = 20,000, learning rate 0.01 for scores and logits, scores
from 0. Departures: logits begin at 4.6 and not at 10, and move so fast that twice the way to the
square root of R* fits into the step, for published trainings have 200,000 steps; and their
optimizer forgets in 10 steps, for the pull fades with the cube of what is left to go. The first
step has 40 % of the training and the second one 30 % (ours). Heads and neurons have targets of
their own, as budgets do. Output channels of the attention and the FFN are not pruned: a plan has no
such unit. A neuron's optimizer moments stay where they were when neurons are moved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import Sites
from secateurs.errors import BudgetError, MethodError
from secateurs.plan import BlockMask, SparsityPlan
from secateurs.plan.masks import KeepMask
from secateurs.processes import averaged
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.allocation.units import removed
from secateurs.pruning.base import Needs, Pruner
from secateurs.pruning.learnable_top_k import LearnableShares

WHOLE = ("heads", "neurons")
BETAS = (0.5, 0.9)  # of the optimizer, if it is an Adam


class MLPruner(Pruner):
    """Heads and neurons, then blocks.

    Args:
        lr: learning rate of scores and logits.
        strength: lambda_f.
        whole: share of the training for heads and neurons.
        tiled: share of it, after that, for blocks. A budget without one of them gives its share to
            the other.
    """

    produces = frozenset({"heads", "neurons", "blocks"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    seeded = False
    chooses = True

    def __init__(
        self,
        lr: float = 1e-2,
        strength: float = 20_000.0,
        whole: float = 0.4,
        tiled: float = 0.3,
    ) -> None:
        if lr <= 0 or strength < 0:
            raise MethodError(
                f"expected lr above 0 and a strength of at least 0, got {lr} and {strength}"
            )
        if min(whole, tiled) <= 0 or whole + tiled > 1:
            raise MethodError(
                "expected shares above 0 that are at most the whole training together, got "
                f"{whole} and {tiled}"
            )
        self.lr, self.strength, self._spans = lr, strength, (whole, tiled)
        self._units: dict[str, LearnableShares] = {}
        self._tiles: LearnableShares | None = None
        self._kept: dict[str, Tensor] = {}  # decided for good
        self._ends = {"units": 0, "tiles": 0}

    def start(self, model: nn.Module, sites: Sites, budget: Budget, seed: int) -> None:
        super().start(model, sites.of_one_stack("MLPruning"), budget, seed)
        asked, shapes, (bn, bk) = budget.asked(), self.units(), self.budget.tile
        whole_blocks = math.lcm(bn, bk)  # neighbours that make whole blocks on either side
        device = next(model.parameters()).device
        self._fractions = {kind: asked[kind] for kind in WHOLE if kind in asked}
        for kind in self._fractions:
            mine = {name: shape for name, shape in shapes.items() if name.endswith(f".{kind}")}
            step = whole_blocks if kind == "neurons" and "blocks" in asked else 1
            total = sum(shape[0] for shape in mine.values())
            gone = round(removed(asked[kind], total) / step) * step
            self._fractions[kind] = gone / total
            self._units[kind] = LearnableShares(mine, step, device)
        if "blocks" in asked:
            widths = {shape.head_dim for shape in sites.layers}
            if "heads" in asked and any(width % whole_blocks for width in widths):
                raise BudgetError(
                    f"expected heads as wide as blocks of {bn}x{bk}, or a multiple, to prune "
                    f"both, got {', '.join(map(str, sorted(widths)))}"
                )
            tiles = {name: shape for name, shape in shapes.items() if len(shape) == 2}
            self._tiles = LearnableShares(tiles, 1, device)
            self._count_left(self._whole_now())

    def begin(self, steps: int) -> None:
        super().begin(steps)
        whole, tiled = self._spans
        end = round((whole + tiled) * steps)
        first = end if self._tiles is None else round(whole * steps) if self._units else 0
        self._ends = {"units": first, "tiles": end}
        if (self._units and first < 1) or (self._tiles is not None and end <= first):
            raise MethodError(
                f"expected a training of some steps for each part of MLPruning, got {steps}"
            )
        for kind, shares in self._units.items():
            shares.begin(1 - self._fractions[kind], first, self._rate(0, first))
        if self._tiles is not None:
            self._begin_tiles()

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = [p for shares in self._all().values() for p in shares.parameters()]
        return [{"params": own, "lr": self.lr, "weight_decay": 0.0, "betas": BETAS}]

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        for shares in self._learning():
            for name, mask in shares.masks().items():
                tiles = shares is self._tiles
                self.gates[name] = self._elements(mask) if tiles else mask

    def penalty(self) -> Tensor | None:
        terms = [shares.penalty(self.strength) for shares in self._learning()]
        return torch.stack(terms).sum() if terms else None

    def after_backward(self, step: int) -> None:
        for group in self.parameter_groups():
            for parameter in group["params"]:
                if parameter.grad is not None:
                    averaged(parameter.grad)

    def after_step(self, step: int) -> None:
        done = step + 1
        if not self._decided("units"):
            if done >= self._ends["units"]:
                self._settle(self._whole_now())
                if self._tiles is not None:
                    self._to_the_front()
                    self._count_left(self._whole_now())
                    self._begin_tiles()
        elif not self._decided("tiles") and done >= self._ends["tiles"]:
            self._settle(self._tiles_now(self._whole_now()))

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        return {f"share_{kind}": float(s.share()) for kind, s in self._all().items()}

    def scores(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for shares in self._all().values():
            found |= shares.turns()
        return found

    @torch.no_grad()
    def plan(self) -> SparsityPlan:
        whole = self._whole_now()
        tiles = self._tiles_now(whole) if self._tiles is not None else SparsityPlan()
        return SparsityPlan({**whole.masks, **tiles.masks}, self.sites.fingerprint())

    def state_dict(self) -> dict[str, Any]:
        return {
            "shares": {kind: shares.state_dict() for kind, shares in self._all().items()},
            "kept": dict(self._kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for kind, shares in self._all().items():
            shares.load_state_dict(state["shares"][kind])
        self._kept = dict(state["kept"])
        if self._tiles is not None and self._decided("units"):
            self._count_left(self._whole_now())
            self._begin_tiles()
        self._shut()

    def _all(self) -> dict[str, LearnableShares]:
        return self._units if self._tiles is None else {**self._units, "blocks": self._tiles}

    def _decided(self, part: str) -> bool:
        shares = next(iter(self._units.values()), None) if part == "units" else self._tiles
        return shares is None or shares.names[0] in self._kept

    def _learning(self) -> list[LearnableShares]:
        """What is being decided now."""
        if not self._decided("units"):
            return [*self._units.values()]
        return [] if self._tiles is None or self._decided("tiles") else [self._tiles]

    def _rate(self, begin: int, end: int) -> float:
        """The mean learning rate of these steps, when it falls to 0 in the training, linearly."""
        return self.lr * (1 - (begin + end) / 2 / self.steps)

    def _begin_tiles(self) -> None:
        tiles, (first, end) = self._tiles, self._ends.values()
        assert tiles is not None
        left = sum(int(mask.sum()) for mask in tiles.left.values())
        total = sum(mask.numel() for mask in tiles.left.values())
        kept = total - removed(self.budget.asked()["blocks"], total)
        tiles.begin(kept / left, end - first, self._rate(first, end))

    def _whole_now(self) -> SparsityPlan:
        """The plan of heads and neurons: what was decided, or would be now."""
        if not self._units:
            return SparsityPlan({}, self.sites.fingerprint())
        turns = {n: t for shares in self._units.values() for n, t in shares.turns().items()}
        plan = self.allocator.allocate(turns, self.sites, self.budget, self._fractions)
        return self._with_decided(plan)

    def _tiles_now(self, whole: SparsityPlan) -> SparsityPlan:
        assert self._tiles is not None
        if not self._decided("units"):
            self._count_left(whole)
        fractions = {"blocks": self.budget.asked()["blocks"]}
        plan = self.allocator.allocate(self._tiles.turns(), self.sites, self.budget, fractions)
        return self._with_decided(plan)

    def _with_decided(self, plan: SparsityPlan) -> SparsityPlan:
        masks = dict(plan.masks)
        for name in self._kept.keys() & masks.keys():
            keep = self._kept[name].cpu()
            masks[name] = (
                BlockMask(keep, self.budget.tile) if keep.dim() == 2 else type(masks[name])(keep)  # type: ignore[call-arg]
            )
        return SparsityPlan(masks, plan.model)

    def _count_left(self, whole: SparsityPlan) -> None:
        """Note which blocks heads and neurons leave. Raises BudgetError where they leave fewer than
        are to stay."""
        assert self._tiles is not None
        bn, bk = self.budget.tile
        for name, left in self._tiles.left.items():
            _, layer, role = name.split(".")
            elements = self.sites.keep(whole, int(layer)).elements(role)
            left.copy_(elements.view(left.shape[0], bn, left.shape[1], bk).any(3).any(1))
        count = sum(int(left.sum()) for left in self._tiles.left.values())
        total = sum(left.numel() for left in self._tiles.left.values())
        kept = total - removed(self.budget.asked()["blocks"], total)
        if not 0 < kept < count:
            raise BudgetError(
                f"expected a budget of blocks that takes some of those that heads and neurons "
                f"leave, and not all, got one that keeps {kept} of {count}"
            )

    def _settle(self, plan: SparsityPlan) -> None:
        for name, mask in plan.masks.items():
            assert isinstance(mask, KeepMask)
            self._kept[name] = mask.keep
        self._shut()

    def _shut(self) -> None:
        like = next(self.model.parameters())
        for name, keep in self._kept.items():
            gate = keep.to(like)
            self.gates[name] = self._elements(gate) if keep.dim() == 2 else gate

    @torch.no_grad()
    def _to_the_front(self) -> None:
        """Move the neurons that stay before those that go, in every layer."""
        for name, keep in self._kept.items():
            if not name.endswith(".neurons"):
                continue
            layer = int(name.split(".")[1])
            order = (~keep).to(torch.uint8).sort(stable=True).indices
            for linear in self.sites.architecture.ffn.linears:
                held = self.sites.linear(self.model, layer, linear.role)
                weight, bias = held.weight, held.bias
                rows = order.to(weight.device)
                if linear.rows == "neurons":
                    held.write(weight[rows], None if bias is None else bias[rows])
                else:
                    held.write(weight[:, rows])
            self._kept[name] = keep[order]
        self._shut()

    def _elements(self, tiles: Tensor) -> Tensor:
        bn, bk = self.budget.tile
        return tiles.repeat_interleave(bn, 0).repeat_interleave(bk, 1)
