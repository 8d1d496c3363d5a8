"""ADMM pattern pruning with regional sparsity (Wang 2024, arXiv 2407.08334).

Minimises f(W) subject to every linear W lying in the set S of a pattern family, by the scaled
augmented Lagrangian f(W) + sum_l rho/2 |W_l - Z_l + U_l|^2:

    W: optimizer steps on that sum      Z <- nearest point of S to W + U      U <- U + W - Z

Z and U move at equal intervals while rho rises tenfold, `stages` times (U falls with it, so that
the multipliers rho U stay). When max |W - Z| / |W| is below 1 %, or two thirds of the training are
over, the pattern is imposed: with SR-STE (Zhou et al. 2021, arXiv 2102.04010) it is taken anew from
W after each step, the gradient of the masked weight passes to the whole W, and what is masked
decays by lambda; else it is frozen.

The families are vector N:M, 2:4, and 4 x 4 blocks of a library of 16 patterns, which is selected
for each linear after a first round of free choice in each block. With `region`, of every 4 x 4
group of blocks only so many are not zero, beyond what the budget asks. With `bits`, Z also rounds
what it keeps to b-bit levels alpha q, alternating between alpha and q; the finish computes with
rounded weights, and leaves them so.

Prunes patterns. Needs a labelled loss and a training, from a fine-tuned model. Cost of a step: a
pass over the weights; a projection at each interval, and with SR-STE after each step of the finish.

There is no full text and no code at hand: the kind of constraint, ADMM and SR-STE are from the
abstract (its first version also names quantisation), the rest is rebuilt from common ADMM pruning
and from the code of SR-STE (lambda = 2e-4). Ours: one penalty in the loss, so that AdamW rescales
it; rho from 1e-3 to 1e-1; six updates of Z; U rescaled; libraries that greedily cover the blocks'
own best patterns, not the most frequent ones; the learning rate is the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import MethodError
from secateurs.gates import Gates
from secateurs.patterns import Family, Library
from secateurs.plan import BlockMask, Mask, PatternMask, SparsityPlan
from secateurs.pruning.base import Needs, Pruner

CONVERGED = 0.01
REGION = 4  # blocks along each side of a region


def regional(weight: Tensor, keep: Tensor, block: tuple[int, int], most: int) -> Tensor:
    """`keep` `[N, K]` with only the `most` blocks of every 4 x 4 that hold most of `weight` left;
    regions at the border may be smaller."""
    (n, k), (p, q) = weight.shape, block
    kept = (weight * keep).float().square()
    energy = kept.view(n // p, p, k // q, q).sum((1, 3))  # [rows, columns] of blocks
    rows, columns = energy.shape
    padded = energy.new_full((-(-rows // REGION) * REGION, -(-columns // REGION) * REGION), -1.0)
    padded[:rows, :columns] = energy
    regions = padded.view(-1, REGION, padded.shape[1] // REGION, REGION).transpose(1, 2)
    order = regions.flatten(2).sort(dim=-1, descending=True, stable=True).indices[..., :most]
    chosen = torch.zeros_like(regions.flatten(2), dtype=torch.bool).scatter_(-1, order, True)
    chosen = chosen.view_as(regions).transpose(1, 2).reshape(padded.shape)[:rows, :columns]
    return keep & chosen.repeat_interleave(p, 0).repeat_interleave(q, 1)


def quantised(weight: Tensor, bits: int, rounds: int = 5) -> Tensor:
    """`weight` on symmetric `bits`-bit levels alpha q, zero among them, alpha and q fitted to it in
    turns."""
    top = 2 ** (bits - 1) - 1
    alpha = weight.abs().max() / top
    for _ in range(rounds):
        if not bool(alpha > 0):
            return torch.zeros_like(weight)
        levels = (weight / alpha).round().clamp(-top, top)
        fitted = (weight * levels).sum() / levels.square().sum().clamp_min(1)
        alpha = torch.where(fitted > 0, fitted, alpha)
    return levels * alpha


class AdmmPatternPruner(Pruner):
    """ADMM towards a pattern family.

    Args:
        rho: of the first stage; ten times more in each next one.
        stages: of rho.
        updates: of Z and U in each stage.
        share: of the training at whose end the pattern is imposed.
        sr_ste: whether the imposed pattern may still change.
        decay: lambda of SR-STE.
        region: blocks that stay of every 4 x 4, or 0 for all.
        bits: of the levels of what is kept, or 0 for none.
    """

    produces = frozenset({"patterns"})
    needs = Needs.GRADIENTS | Needs.TRAINING

    def __init__(
        self,
        rho: float = 1e-3,
        stages: int = 3,
        updates: int = 2,
        share: float = 2 / 3,
        sr_ste: bool = True,
        decay: float = 2e-4,
        region: int = 0,
        bits: int = 0,
    ) -> None:
        if rho <= 0 or decay < 0 or min(stages, updates) < 1 or not 0 < share <= 1:
            raise MethodError(
                "expected rho above 0, a decay of at least 0, stages and updates from 1 and a "
                f"share between 0 and 1, got {rho}, {decay}, {stages}, {updates} and {share}"
            )
        if not 0 <= region < REGION**2 or not (bits == 0 or 2 <= bits <= 8):
            raise MethodError(
                f"expected a region of 0 to {REGION**2 - 1} blocks and 2 to 8 bits or none, got "
                f"{region} and {bits}"
            )
        if bits and not sr_ste:
            raise MethodError("expected sr_ste with bits: levels are taken anew after each step")
        self.rho, self.stages, self.updates, self.share = rho, stages, updates, share
        self.sr_ste, self.decay, self.region, self.bits = bool(sr_ste), decay, region, bits
        self._families: dict[str, Family] = {}
        self._z: dict[str, Tensor] = {}
        self._u: dict[str, Tensor] = {}
        self._updates = 0
        self._imposed = False
        self._residual = float("inf")

    def open(self, gates: Gates) -> None:
        super().open(gates)
        self.units()  # refuses patterns that do not fit
        (fraction,) = self.budget.asked().values()
        self._kept = self.budget.kept_in_pattern(fraction)
        with torch.no_grad():
            for name, weight in self.linear_weights().items():
                if self.budget.pattern != "library":
                    self._families[name] = self.budget.family(weight, self._kept)
                self._z[name] = self._project(name, weight.float())
                self._u[name] = torch.zeros_like(self._z[name])

    def begin(self, steps: int) -> None:
        super().begin(steps)
        self._end = round(self.share * steps)
        if self._end < self.stages * self.updates:
            raise MethodError(
                f"expected at least {self.stages * self.updates} steps for the updates of ADMM, "
                f"got {self._end} of a training of {steps}"
            )
        parts = range(1, self.stages * self.updates + 1)
        self._events = {round(self._end * i / len(parts)) for i in parts}

    def penalty(self) -> Tensor | None:
        if self._imposed:
            if not self.sr_ste or not self.decay:
                return None
            masked = [
                (weight * (1 - self.gates[name])).square().sum()
                for name, weight in self.linear_weights().items()
            ]
            return self.decay / 2 * torch.stack(masked).sum()
        distances = [
            (weight.float() - self._z[name] + self._u[name]).square().sum()
            for name, weight in self.linear_weights().items()
        ]
        return self._rho() / 2 * torch.stack(distances).sum()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self._imposed:
            if self.sr_ste:
                self._impose()
            return
        if step + 1 in self._events:
            self._update()
            if self._residual < CONVERGED or step + 1 >= self._end:
                self._imposed = True
                self._impose()

    def close(self) -> None:
        if self.bits and self._imposed:
            for name in self._z:
                self.gates.fold(name)

    def figures(self) -> dict[str, float]:
        return {"rho": self._rho(), "residual": self._residual, "imposed": float(self._imposed)}

    @torch.no_grad()
    def plan(self) -> SparsityPlan:
        masks: dict[str, Mask] = {}
        for name, weight in self.linear_weights().items():
            frozen = self._imposed and not self.sr_ste
            keep = self.gates[name] != 0 if frozen else self._keep(name, weight)
            block = self.budget.pattern_block
            masks[name] = BlockMask(keep, (1, 1)) if self.region else PatternMask(keep, block)
        return SparsityPlan(masks, self.sites.fingerprint())

    def state_dict(self) -> dict[str, Any]:
        libraries = {n: f.patterns for n, f in self._families.items() if isinstance(f, Library)}
        return {
            "z": dict(self._z),
            "u": dict(self._u),
            "updates": self._updates,
            "imposed": self._imposed,
            "residual": self._residual,
            "libraries": libraries,
            "gates": {name: self.gates[name] for name in self._z if name in self.gates},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, z in self._z.items():
            z.copy_(state["z"][name])
            self._u[name].copy_(state["u"][name])
        self._updates, self._imposed = state["updates"], state["imposed"]
        self._residual = state["residual"]
        self._families |= {name: Library(p.cpu()) for name, p in state["libraries"].items()}
        weights = self.linear_weights()
        for name, gate in state["gates"].items():
            self.gates.set(name, gate.to(weights[name]), straight_through=self.sr_ste)

    def _rho(self) -> float:
        return self.rho * 10 ** min(self._updates // self.updates, self.stages - 1)

    def _update(self) -> None:
        """One Z- and U-step, and the next rho."""
        residuals, before = [], self._rho()
        self._updates += 1
        for name, weight in self.linear_weights().items():
            moved = weight.float() + self._u[name]
            if name not in self._families:
                self._families[name] = self.budget.family(moved, self._kept)
            self._z[name] = self._project(name, moved)
            self._u[name] = (moved - self._z[name]) * (before / self._rho())
            residuals.append((weight - self._z[name]).norm() / weight.norm())
        self._residual = float(torch.stack(residuals).max())

    def _project(self, name: str, weight: Tensor) -> Tensor:
        """The nearest point of the set; before a library is selected, of free choice."""
        nearest = weight * self._keep(name, weight)
        return quantised(nearest, self.bits) if self.bits else nearest

    def _keep(self, name: str, weight: Tensor) -> Tensor:
        family = self._families.get(name)
        keep = _free(weight, self._kept) if family is None else family.keep(weight)
        if self.region:
            p, q = self.budget.pattern_block
            block = (p, q) if self.budget.pattern == "library" else (p, 4)
            keep = regional(weight, keep, block, self.region)
        return keep

    def _impose(self) -> None:
        for name, weight in self.linear_weights().items():
            gate = self._keep(name, weight).to(weight)
            if self.bits:
                levels = quantised(weight * gate, self.bits)
                gate = torch.where(levels == 0, 0.0, levels / weight)
            self.gates.set(name, gate, straight_through=self.sr_ste)


def _free(weight: Tensor, ones: int) -> Tensor:
    """The `ones` largest entries of every 4 x 4 block."""
    (n, k), (p, q) = weight.shape, (4, 4)
    tiles = weight.abs().reshape(n // p, p, k // q, q).transpose(1, 2).flatten(2)
    order = tiles.sort(dim=-1, descending=True, stable=True).indices[..., :ones]
    keep = torch.zeros_like(tiles, dtype=torch.bool).scatter_(-1, order, True)
    return keep.view(n // p, k // q, p, q).transpose(1, 2).reshape(n, k)
