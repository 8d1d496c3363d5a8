"""Session: one run of a method that prunes while a model trains, in whoever's training loop.

with Session(model, "dsp", budget="heads=0.5", steps=len(batches)) as session:
    optimizer = torch.optim.AdamW(session.parameter_groups(lr=2e-5))
    for batch in batches:
        (model(**batch).loss + session.penalty()).backward()
        session.after_backward()
        optimizer.step()
        session.after_step()
        optimizer.zero_grad()
plan = session.plan
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.architectures.sites import find_sites
from secateurs.checks import check_seed, check_weights, door
from secateurs.errors import ArgumentError, CheckpointError, MethodError
from secateurs.masking.gates import Gates
from secateurs.plan import SparsityPlan
from secateurs.pruning.allocation import Allocator, Price, described
from secateurs.pruning.allocation.budget import Budget
from secateurs.pruning.base import Needs, Pruner, notes_of
from secateurs.pruning.methods import check_options, make_pruner
from secateurs.pruning.run_folders import plan_digest

GIVE_UP = 25  # steps in a row without finite gradients


class Session:
    """Drives one training method over a live model; use as a context manager.

    Args:
        model: a transformers model of a supported family; its weights are trained in place, its
            gates are gone once the context is left.
        method: a name in METHODS whose method trains, or a plan that was already decided: then its
            gates stay shut while the rest recovers.
        budget: what must go, in the units the method prunes; none with a plan.
        allocator, price: as for `prune`; none for a method that decides for itself.
        steps: optimizer steps of the whole training; may be given to `begin` instead.
        seed: of the method's own random numbers. All processes of a data-parallel run must give
            the same one.
        options: of the method and the allocator.

    A step whose gradients are not finite is left out whole: `after_backward` drops the gradients,
    so that the optimizer moves nothing, and the method does not see the step.

    Raises MethodError for an unknown method or option, one that does not train, and for schedules
    that do not fit into the training; BudgetError and FamilyError as their names say.
    """

    @door
    def __init__(
        self,
        model: nn.Module,
        method: str | SparsityPlan,
        *,
        budget: Budget | Mapping[str, Any] | str | None = None,
        steps: int | None = None,
        allocator: str | Allocator | None = None,
        price: Price | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        check_seed(seed)
        check_weights(model)
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ArgumentError(
                "expected a model that can be trained, got one made under torch.inference_mode: "
                "train a copy.deepcopy of it"
            )
        self.model, self.seed, self.options = model, seed, options
        self.sites = find_sites(model)
        self.step = 0
        self._left_out = 0
        self._finite = True
        self._learnt = False  # whether a step has had gradients to go by
        self._steps: int | None = None
        self._rates: list[Any] | None = None  # of the method's parameters, as an optimizer has them
        self._given_steps = steps
        self._stack: ExitStack | None = None
        self._plan: SparsityPlan | None = None
        self._allocator: str | None = None  # in words, if the caller chose it
        if isinstance(method, SparsityPlan):
            if budget is not None or allocator is not None or price is not None or options:
                raise MethodError(
                    "expected neither a budget nor an allocator nor options beside a plan, got some"
                )
            self.method, self.budget = "", None
            self.pruner: Pruner = _Decided(method)
        else:
            self.options = check_options(method, options, allocator)
            self.pruner = make_pruner(method, allocator=allocator, price=price, **self.options)
            self.method = method
            if allocator is not None:
                self._allocator = described(self.pruner.allocator)
            if Needs.TRAINING not in self.pruner.needs:
                raise MethodError(
                    f"{method} decides without training: expected its plan, made by prune"
                )
            if budget is None:
                raise MethodError(f"{method} expects a budget, got none")
            self.budget = Budget.of(budget)
            self.pruner.check(self.budget)

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            gates = stack.enter_context(Gates(self.model, self.sites))
            self.pruner.start(self.model, self.sites, self.budget, self.seed)  # type: ignore[arg-type]
            gates.on_forward(self.pruner.before_forward)
            self.pruner.open(gates)
            if not self.pruner.trains_model:
                wanted = {p: p.requires_grad for p in self.model.parameters()}
                stack.callback(lambda: [p.requires_grad_(w) for p, w in wanted.items()])
                self.model.requires_grad_(False)
            if self._given_steps is not None:
                self.begin(self._given_steps)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        assert self._stack is not None
        with self._stack:
            if kind is None:
                if (self.step and self._learnt) or not self.method:
                    self._plan = self.current_plan()
                self.pruner.close()

    @door
    def begin(self, steps: int) -> None:
        """The training has `steps` optimizer steps. Raises MethodError if the method's schedules do
        not fit into them, or if its learning rate follows from them and the groups for an optimizer
        were taken before."""
        if steps < 1:
            raise MethodError(f"expected a training of at least one step, got {steps}")
        self.pruner.begin(steps)
        if self._rates not in (None, self._own_rates()):
            raise MethodError(
                f"expected the number of steps before parameter_groups, since the learning rate of "
                f"{self.method} follows from it, got it afterwards"
            )
        self._steps = steps

    def parameter_groups(self, **of_model: Any) -> list[dict[str, Any]]:
        """Groups for an optimizer: the model's parameters that are trained, with the settings
        `of_model`, and the method's own with theirs, and `of_model` where it has none."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        of_the_model = [{"params": parameters, **of_model}] if parameters else []
        own = [{**of_model, **group} for group in self.pruner.parameter_groups()]
        self._rates = self._own_rates()
        return [*of_the_model, *own]

    def _own_rates(self) -> list[Any]:
        return [group.get("lr") for group in self.pruner.parameter_groups()]

    def penalty(self) -> Tensor | float:
        """Return what the method adds to the loss of the forward pass just made."""
        return 0.0 if (penalty := self.pruner.penalty()) is None else penalty

    @door
    def after_backward(self, finite: bool | None = None) -> None:
        """Gradients are complete: unscaled, summed over micro-batches and processes, not clipped.

        Args:
            finite: whether all of the model's are, if the caller knows.

        Raises MethodError after 25 steps in a row without finite gradients.
        """
        if self._steps is None:
            raise MethodError("expected the number of steps before the first one: call begin")
        own = [p for group in self.pruner.parameter_groups() for p in group["params"]]
        if finite is None:
            finite = _finite(self.model.parameters())
        self._finite = finite and _finite(own)
        if self._finite:
            judged = self.model.parameters() if self.pruner.trains_model else own
            self._learnt = self._learnt or not _all_zero(judged)
            self._left_out = 0
            self.pruner.after_backward(self.step)
            return
        self._left_out += 1
        if self._left_out == GIVE_UP:
            raise MethodError(
                f"expected finite gradients, got NaN or infinity in {GIVE_UP} steps in a row; "
                "the last checkpoint is still good"
            )
        for parameter in (*self.model.parameters(), *own):
            parameter.grad = None

    def after_step(self) -> None:
        """The optimizer has stepped; call before the model's gradients are dropped. The
        gradients of the method's own parameters are dropped here: not every loop knows of them."""
        if self._finite:
            self.pruner.after_step(self.step)
        for group in self.pruner.parameter_groups():
            for parameter in group["params"]:
                parameter.grad = None
        self.step += 1

    @property
    def plan(self) -> SparsityPlan:
        """The plan that the method decided on. Raises MethodError before the training is over,
        after none at all, and after one whose gradients told nothing."""
        if self._plan is None:
            if self.step and not self._learnt:
                raise MethodError(
                    "expected gradients to decide by, got none but zeros, NaN or infinity in all "
                    f"{self.step} steps"
                )
            raise MethodError(
                f"expected a session that has trained and was left, got one at step {self.step}"
            )
        return self._plan

    def current_plan(self) -> SparsityPlan:
        """Return the plan that the method would decide on now; it meets the budget at any time."""
        plan = self.pruner.plan()
        if not self.method:
            return plan
        notes = notes_of(self.method, self.budget, self.seed, self.options, self._allocator)
        return replace(plan, notes=notes)

    def state_dict(self) -> dict[str, Any]:
        """All that an interrupted session needs to go on exactly: tensors, numbers and strings."""
        return {
            "run": self.run(),
            "step": self.step,
            "generator": self.pruner.generator.get_state(),
            "pruner": self.pruner.state_dict(),
        }

    @door
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises CheckpointError for one of another method, budget,
        seed, options or plan."""
        if not state.keys() >= {"run", "step", "generator", "pruner"}:
            raise CheckpointError(f"expected the state of a session, got one of {[*state]}")
        saved = dict(state["run"])
        for key, value in self.run().items():
            if saved.get(key) != value:
                raise CheckpointError(
                    f"expected a state with {key} {value!r}, got one with {saved.get(key)!r}"
                )
        self.step = state["step"]
        self._learnt = self.step > 0
        self.pruner.generator.set_state(state["generator"])
        self.pruner.load_state_dict(state["pruner"])

    def run(self) -> dict[str, Any]:
        """Which run this is, in numbers and strings: its state serves no other."""
        options = ", ".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        budget = None if self.budget is None else repr(self.budget)
        plan = None if self.method else plan_digest(self.pruner.plan())
        return {
            "method": self.method,
            "budget": budget,
            "seed": self.seed,
            "options": options,
            "allocator": self._allocator,
            "plan": plan,
        }


def _finite(parameters: Iterable[nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None)


def _all_zero(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether there are gradients, and none that is not zero: those of a loss without labels."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)


class _Decided(Pruner):
    """A plan made before: its gates stay shut while the rest of the model recovers."""

    produces = frozenset()
    needs = Needs.TRAINING

    def __init__(self, plan: SparsityPlan) -> None:
        self._decided = plan

    def start(self, model: nn.Module, sites: Any, budget: Budget, seed: int) -> None:
        self._decided.validate(sites, sites.fingerprint())
        self.model, self.sites = model, sites
        self.generator = torch.Generator().manual_seed(seed)

    def open(self, gates: Gates) -> None:
        super().open(gates)
        gates.set_plan(self._decided)

    def close(self) -> None:
        for name in self._decided.levels:
            self.gates.fold(name)

    def plan(self) -> SparsityPlan:
        return self._decided
