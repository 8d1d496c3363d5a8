"""ADMM pattern pruning with regional sparsity (Wang 2024, arXiv 2407.08334).

Minimises f(W) subject to every linear W lying in the set S of a pattern family, by the scaled
augmented Lagrangian f(W) + sum_l rho/2 |W_l - Z_l + U_l|^2:

    W: optimizer steps on f, each followed by W <- (W + rho (Z - U)) / (1 + rho)
    Z <- nearest point of S to W + U        U <- U + g (W - Z)

Z and U move at equal intervals while rho rises tenfold, `stages` times (U falls with it, so that
the multipliers rho U stay); g is the share of the way to Z - U that the pull alone takes W in an
interval. When max |W - Z| / |W| is below 1 %, or two thirds of the training are over, the pattern
is imposed: with SR-STE (Zhou et al. 2021, arXiv 2102.04010) it is taken anew from W after each
step, the gradient of the masked weight passes to the whole W, and what is masked decays by lambda;
else it is frozen.

The families are vector N:M, 2:4, and 4 x 4 blocks of a library of 16 patterns, which is selected
for each linear after a first round of free choice in each block. With `region`, of every 4 x 4
group of blocks only so many are not zero, beyond what the budget asks.

With `bits`, what is left of the training is cut in three. After the first third the pattern is
frozen, and the same steps with the same rho draw what it keeps to b-bit levels alpha q, q whole and
|q| < 2^(b-1): Z is their nearest point, alpha and q fitted in turns, one alpha for each linear.
When |W - Z| / |W| is below 1 % again, or two thirds are over, the levels are final: the model
computes with rounded weights, the gradient passing to those not rounded, and is left with them.

Prunes patterns. Needs a labelled loss and a training, from a fine-tuned model. Cost of a step: a
pass over the weights; a projection at each interval, and with SR-STE after each step of the finish;
on levels, rounding in each forward pass.

There is no full text and no code at hand: the kind of constraint, ADMM and SR-STE are from the
abstract (its first version also names quantisation), the rest is rebuilt from common ADMM pruning
and from the code of SR-STE (lambda = 2e-4). Ours: the pull of the penalty as a step of its own, the
minimum of rho/2 |W - Z + U|^2 plus half the squared way there, for AdamW would rescale it, and with
its small learning rates W would not reach Z; g, which is 1 in the textbook, for in few steps U
would outgrow W and turn the choice to smaller weights; rho from 1e-3 to 1e-1; six updates of Z; U
rescaled; libraries that greedily cover the blocks' own best patterns, not the most frequent ones;
the thirds, and a search for the first alpha; the learning rate is the trainer's. The pull also
holds what is kept where it was at the last update; after the few hundred steps of our benchmark a
pattern imposed at once is still ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateurs.errors import MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import BlockMask, Mask, PatternMask, SparsityPlan
from secateurs.plan.quantization import LEAST_BITS, MOST_BITS, Levels
from secateurs.plan.weight_patterns import Family, Library
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


class AdmmPatternPruner(Pruner):
    """ADMM towards a pattern family.

    Args:
        rho: of the first stage; ten times more in each next one.
        stages: of rho.
        updates: of Z and U in each stage.
        share: of the training at whose end the pattern is imposed.
        sr_ste: whether the imposed pattern may still change, until levels freeze it.
        decay: lambda of SR-STE.
        region: blocks that stay of every 4 x 4, or 0 for all.
        bits: of the levels of what is kept, or 0 for none.
    """

    produces = frozenset({"patterns"})
    needs = Needs.GRADIENTS | Needs.TRAINING
    labelled = True
    seeded = False
    chooses = True

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
        if region not in range(REGION**2) or bits not in (0, *range(LEAST_BITS, MOST_BITS + 1)):
            raise MethodError(
                f"expected a region of 0 to {REGION**2 - 1} blocks and {LEAST_BITS} to {MOST_BITS} "
                f"bits or none, got {region} and {bits}"
            )
        self.rho, self.stages, self.updates, self.share = rho, stages, updates, share
        self.sr_ste, self.decay, self.region, self.bits = bool(sr_ste), decay, region, bits
        self._families: dict[str, Family] = {}
        self._z: dict[str, Tensor] = {}
        self._u: dict[str, Tensor] = {}
        self._updates = 0
        self._pulls = 0  # since the last update
        self._imposed = False
        self._frozen = False
        self._levels: dict[str, Levels] = {}
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
        end = round(self.share * steps)
        self._events = self._spread(0, end)
        if self.bits:
            third = (steps - end) / 3
            self._freezing = round(end + third)
            self._level_events = self._spread(self._freezing, round(end + 2 * third))

    def penalty(self) -> Tensor | None:
        """Return the penalty of SR-STE on masked weights."""
        if not self._imposed or self._frozen or not self.sr_ste or not self.decay:
            return None
        masked = [
            (weight * (1 - self.gates[name])).square().sum()
            for name, weight in self.linear_weights().items()
        ]
        return self.decay / 2 * torch.stack(masked).sum()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        done = step + 1
        if not self._levels and (self._frozen or not self._imposed):
            self._pull()
        if not self._imposed:
            if self._updated(done, self._events):
                self._imposed = True
                self._impose()
        elif not self._frozen:
            if self.sr_ste:
                self._impose()
            if self.bits and done >= self._freezing:
                self._freeze()
        elif not self._levels and self._updated(done, self._level_events):
            for name, levels in self._fitted().items():
                self._levels[name] = levels
                self.gates.set_levels(name, levels)

    def close(self) -> None:
        for name in self._levels:
            self.gates.fold(name)

    def figures(self) -> dict[str, float]:
        return {
            "rho": self._rho(),
            "residual": self._residual,
            "imposed": float(self._imposed),
            "rounded": float(bool(self._levels)),
        }

    @torch.no_grad()
    def plan(self) -> SparsityPlan:
        masks: dict[str, Mask] = {}
        for name, weight in self.linear_weights().items():
            keep = self._chosen(name, weight)
            block = self.budget.pattern_block
            masks[name] = BlockMask(keep, (1, 1)) if self.region else PatternMask(keep, block)
        levels = self._levels or (self._fitted() if self.bits else {})
        return SparsityPlan(masks, self.sites.fingerprint(), levels=dict(levels))

    def state_dict(self) -> dict[str, Any]:
        libraries = {n: f.patterns for n, f in self._families.items() if isinstance(f, Library)}
        return {
            "z": dict(self._z),
            "u": dict(self._u),
            "updates": self._updates,
            "pulls": self._pulls,
            "imposed": self._imposed,
            "frozen": self._frozen,
            "scales": {name: levels.scale for name, levels in self._levels.items()},
            "residual": self._residual,
            "libraries": libraries,
            "gates": {name: self.gates[name] for name in self._z if name in self.gates},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, z in self._z.items():
            z.copy_(state["z"][name])
            self._u[name].copy_(state["u"][name])
        self._updates, self._pulls = state["updates"], state["pulls"]
        self._residual = state["residual"]
        self._imposed, self._frozen = state["imposed"], state["frozen"]
        self._families |= {name: Library(p.cpu()) for name, p in state["libraries"].items()}
        weights = self.linear_weights()
        for name, gate in state["gates"].items():
            moving = self.sr_ste and not self._frozen
            self.gates.set(name, gate.to(weights[name]), straight_through=moving)
        for name, scale in state["scales"].items():
            self._levels[name] = Levels(self.bits, scale)
            self.gates.set_levels(name, self._levels[name])

    def _spread(self, begin: int, end: int) -> list[int]:
        """The steps after which Z and U move, the last one being `end`."""
        count = self.stages * self.updates
        if end - begin < count:
            raise MethodError(
                f"expected at least {count} steps for the updates of ADMM, got {end - begin} of a "
                f"training of {self.steps}"
            )
        return [round(begin + (end - begin) * i / count) for i in range(1, count + 1)]

    def _updated(self, done: int, events: list[int]) -> bool:
        """Update if it is time to; whether W has come close enough, or there is no more time. An
        update whose step was left out comes with the next."""
        if done < events[self._updates]:
            return False
        self._update()
        return self._residual < CONVERGED or self._updates == len(events)

    def _rho(self) -> float:
        return self.rho * 10.0 ** min(self._updates // self.updates, self.stages - 1)

    def _pull(self) -> None:
        """To the minimum of rho/2 |W - Z + U|^2 + 1/2 |W - W now|^2."""
        self._pulls += 1
        pulled = self._rho() / (1 + self._rho())
        for name, weight in self.linear_weights().items():
            distance = self._left(name, weight) - self._z[name] + self._u[name]
            weight.sub_((pulled * distance).to(weight))

    def _update(self) -> None:
        """One Z- and U-step, and the next rho."""
        residuals, before = [], self._rho()
        step = 1 - (1 + before) ** -self._pulls
        self._updates, self._pulls = self._updates + 1, 0
        for name, weight in self.linear_weights().items():
            left = self._left(name, weight)
            moved = left + self._u[name]
            if name not in self._families:
                self._families[name] = self.budget.family(moved, self._kept)
            self._z[name] = self._project(name, moved)
            self._u[name] += step * (left - self._z[name])
            self._u[name] *= before / self._rho()
            length = left.norm().clamp_min(torch.finfo(left.dtype).tiny)
            residuals.append((left - self._z[name]).norm() / length)
        self._residual = float(torch.stack(residuals).max())

    def _project(self, name: str, weight: Tensor) -> Tensor:
        """The nearest point of the set; before a library is selected, of free choice."""
        if self._frozen:
            return Levels.fit(weight, self.bits).nearest(weight)
        return weight * self._keep(name, weight)

    def _left(self, name: str, weight: Tensor) -> Tensor:
        """W, float32: of a frozen pattern what it keeps."""
        return weight.float() * self.gates[name] if self._frozen else weight.float()

    def _chosen(self, name: str, weight: Tensor) -> Tensor:
        """Bool `[N, K]`: the pattern that holds if the training ends now."""
        still = self._frozen or (self._imposed and not self.sr_ste)
        return self.gates[name] != 0 if still else self._keep(name, weight)

    def _fitted(self) -> dict[str, Levels]:
        return {
            name: Levels.fit(weight * self._chosen(name, weight), self.bits)
            for name, weight in self.linear_weights().items()
        }

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
            self.gates.set(name, gate, straight_through=self.sr_ste)

    def _freeze(self) -> None:
        """The pattern stays as its gates have it; what it keeps sets out for levels."""
        self._frozen, self._updates, self._residual = True, 0, float("inf")
        for name, weight in self.linear_weights().items():
            self.gates.set(name, self.gates[name])
            self._z[name] = self._project(name, self._left(name, weight))
            self._u[name].zero_()


def _free(weight: Tensor, ones: int) -> Tensor:
    """The `ones` largest entries of every 4 x 4 block."""
    (n, k), (p, q) = weight.shape, (4, 4)
    tiles = weight.abs().reshape(n // p, p, k // q, q).transpose(1, 2).flatten(2)
    order = tiles.sort(dim=-1, descending=True, stable=True).indices[..., :ones]
    keep = torch.zeros_like(tiles, dtype=torch.bool).scatter_(-1, order, True)
    return keep.view(n // p, k // q, p, q).transpose(1, 2).reshape(n, k)
