"""Gates: the one mechanism by which a mask, soft or hard, acts on a live model.

A gate multiplies what a unit produces: the context of a head before the output projection, the
activation of a neuron before the down projection, the result of a whole sub-layer before its
residual is added, or the elements of a weight, which may then be rounded to levels. Gates are
differentiable, and may carry a leading batch dimension, so that a gradient with respect to a gate
is one per example. Leaving restores the model exactly; what is saved in between has stock names,
too. Attention rules, which hide keys and multiply nothing, are hooks of `ruled_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateurs.architectures.calls import states_of
from secateurs.architectures.linears import LinearView, together
from secateurs.architectures.sites import Sites, find_sites
from secateurs.checks import door
from secateurs.errors import PlanError
from secateurs.masking.ruled_attention import RuledAttention, check_rules, ruled_layers
from secateurs.plan import Site, SparsityPlan
from secateurs.plan.attention_rules import Rule
from secateurs.plan.quantization import Levels


class Gates(Mapping[str, Tensor]):
    """Open gates on `model`; use as a context manager.

    Args:
        model: a stock model; its hooks and weights are as before once the context is left.
        sites: of that model.

    Set a gate with `gates[name] = tensor`, on the model's device, at any time inside the context:

    - `layers.I.heads`: `[H]` or `[B, H]`, acts on the contexts of heads.
    - `layers.I.neurons`: `[F]` or `[B, F]`, on the activations of the FFN.
    - `layers.I.attention`, `layers.I.ffn`: `[]` or `[B]`, on the sub-layer's output, bias included.
    - `layers.I.query` and the other linears: `[N, K]`, on the weight.

    Those of an encoder and a decoder, and of cross-attention, likewise under their names.
    """

    @door
    def __init__(self, model: nn.Module, sites: Sites) -> None:
        if find_sites(model).fingerprint() != sites.fingerprint():
            raise PlanError(f"expected the sites of this {type(model).__name__}, got another's")
        self._model, self._sites = model, sites
        self._gates: dict[str, Tensor] = {}
        self._straight_through: set[str] = set()
        self._levels: dict[str, Levels] = {}
        self._weights: dict[nn.Module, _GatedWeight] = {}
        self._ruled: dict[int, RuledAttention] = {}  # by layer
        self._stack: ExitStack | None = None

    def __enter__(self) -> Gates:
        self._stack = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None
        self._gates.clear()
        self._straight_through.clear()
        self._levels.clear()
        self._ruled.clear()
        self._weights.clear()

    def __getitem__(self, name: str) -> Tensor:
        return self._gates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)

    def __setitem__(self, name: str, gate: Tensor) -> None:
        self.set(name, gate)

    @door
    def set(self, name: str, gate: Tensor, *, straight_through: bool = False) -> None:
        """Set the gate at site `name`. With `straight_through`, the gradient passes to what is
        gated as if the gate were one, and none reaches the gate."""
        site = self._site(name)
        batched = site.kind != "linear" and gate.dim() == len(site.shape) + 1
        if tuple(gate.shape[1:] if batched else gate.shape) != site.shape:
            raise PlanError(
                f"the gate of {name} must have shape {site.shape}, got {tuple(gate.shape)}"
            )
        known = name in self._gates
        self._gates[name] = gate
        (self._straight_through.add if straight_through else self._straight_through.discard)(name)
        if not known:
            self._open(name, site)

    @door
    def set_levels(self, name: str, levels: Levels) -> None:
        """Round what the gate at the linear `name` lets through to `levels`; the gradient passes
        as if it were not rounded. A gate that is not set yet is one."""
        site = self._site(name)
        if site.kind != "linear":
            raise PlanError(f"levels are of a linear's weight, got some for site {name!r}")
        if name not in self._gates:
            self[name] = next(self._model.parameters()).new_ones(site.shape)
        self._levels[name] = levels

    @door
    def set_plan(self, plan: SparsityPlan) -> None:
        """Set hard gates: zero where `plan` removes, one where it keeps; and its levels, and its
        attention rules. Raises FamilyError for a model that cannot follow those."""
        plan.validate(self._sites, self._sites.fingerprint())
        check_rules(self._model, self._sites, plan)
        like = next(self._model.parameters())
        for i in range(len(self._sites.layers)):
            keep = self._sites.keep(plan, i)
            gates: dict[str, Tensor] = dict(keep.units)
            gates |= {part: torch.tensor(stays) for part, stays in keep.stays.items()}
            gates |= {role: keep.elements(role) for role in keep.weights}
            for part, mask in gates.items():
                if not bool(mask.all()):
                    self[self._sites.name(i, part)] = mask.to(like)
        for name, levels in plan.levels.items():
            self.set_levels(name, levels)
        for i in ruled_layers(self._sites, plan):
            self._restrict(i, self._sites.keep(plan, i).rules or ())

    def _restrict(self, index: int, rules: tuple[Rule, ...]) -> None:
        if index not in self._ruled:
            ruled = self._ruled[index] = RuledAttention(rules)
            self._opened().callback(ruled.install(self._model, self._sites, index))
        self._ruled[index].rules = rules

    @door
    def on_forward(self, callback: Callable[[Mapping[str, Any]], None]) -> None:
        """Call `callback` with the keyword inputs before each forward pass of the model."""
        stack = self._opened()
        hook = self._model.register_forward_pre_hook(
            lambda _, args, inputs: callback(inputs), with_kwargs=True
        )
        stack.callback(hook.remove)

    @door
    def on_output(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with the model's output after each forward pass of it."""
        hook = self._model.register_forward_hook(lambda _, args, output: callback(output))
        self._opened().callback(hook.remove)

    @door
    def watch(self, name: str, callback: Callable[[Tensor], None]) -> None:
        """Call `callback` in each forward pass with what the gate at `name` multiplies, before it
        does: head contexts `[B, T, H * D]`, activations `[B, T, F]`, the output of a sub-layer
        `[B, T, d]`; at a linear, its input."""
        site = self._site(name)
        if site.kind in ("module", "heads", "neurons"):
            linear, before = self._behind(site)
        else:
            view, before = self._sites.linear(self._model, site.layer, site.part), True
            linear = view.module
        sizes: list[torch.Size] = []

        def remember(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            sizes[:] = [states_of(args, named).shape[:2]]

        def hand_on(x: Tensor) -> None:
            """Some layers run their linears on the tokens of all examples, one below the other."""
            callback(x.unflatten(0, sizes[0]) if x.dim() == 2 else x)

        layer = self._sites.layer(self._model, site.layer)
        self._opened().callback(layer.register_forward_pre_hook(remember, with_kwargs=True).remove)
        if before:
            hook = linear.register_forward_pre_hook(lambda _, args: hand_on(args[0]), prepend=True)
        else:
            hook = linear.register_forward_hook(lambda _, args, out: hand_on(out), prepend=True)
        self._opened().callback(hook.remove)

    @door
    @torch.no_grad()
    def fold(self, name: str) -> None:
        """Let the weight of a linear be what its gate and levels make of it, or what heads and
        neurons feed be what theirs do, for good; the gate is one afterwards. Raises PlanError for
        gates of single examples, and of sub-layers."""
        site, gate = self._site(name), self._gates[name]
        if site.kind == "module" or gate.shape != site.shape:
            raise PlanError(
                f"expected a gate of a linear, heads or neurons to fold, one for all examples, got "
                f"that of {name} of shape {tuple(gate.shape)}"
            )
        if site.kind == "linear":
            view = self._sites.linear(self._model, site.layer, site.part)
            view.write(self._gated(name, view.weight, gate))
        else:
            view = self._fed_by(site)
            channels = gate.repeat_interleave(self._width(site))
            view.write(view.weight * channels.to(view.weight.dtype))
        self.set(name, torch.ones_like(gate))

    def _opened(self) -> ExitStack:
        if self._stack is None:
            raise PlanError("gates can be set only inside `with Gates(model, sites) as gates`")
        return self._stack

    def _site(self, name: str) -> Site:
        self._opened()
        site = self._sites.by_name.get(name)
        if site is None or site.part == "layer":
            raise PlanError(f"no gate can stand at {name!r}: the model has no such site")
        if site.kind == "attention_rules":
            raise PlanError(f"no gate can stand at {name!r}: rules are set by set_plan")
        return site

    def _behind(self, site: Site) -> tuple[nn.Module, bool]:
        """The linear whose input (True) or output (False) a gate at `site` multiplies."""
        return self._fed_by(site).module, site.kind != "module"

    def _fed_by(self, site: Site) -> LinearView:
        """The last linear of the sub-layer that `site` is of."""
        role = self._sites.sublayer(site).last.role
        return self._sites.linear(self._model, site.layer, role)

    def _width(self, site: Site) -> int:
        """Channels that one entry of a gate at `site` multiplies."""
        return self._sites.layers[site.layer].head_dim if site.kind == "heads" else 1

    def _open(self, name: str, site: Site) -> None:
        stack = self._opened()
        if site.kind == "linear":
            self._open_weight(name, site)
            return
        linear, before = self._behind(site)
        width = self._width(site)

        def scale(x: Tensor) -> Tensor:
            """Multiply `x` `[B, T, C]`, or `[B * T, C]`, by the gate, each entry over its `width`
            channels."""
            gate = self._gates[name]
            batched = gate.dim() == (2 if before else 1)
            if batched and gate.shape[0] != x.shape[0]:
                gate = _of_choices(gate, x.shape[0])
            channels = gate.repeat_interleave(width, -1) if before else gate[..., None]
            return self._gated(name, x, channels[:, None] if batched and x.dim() > 2 else channels)

        def gate_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (scale(args[0]), *args[1:])

        def gate_output(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return scale(out)

        hook = linear.register_forward_pre_hook(gate_input) if before else None
        hook = hook or linear.register_forward_hook(gate_output)
        stack.callback(hook.remove)

    def _open_weight(self, name: str, site: Site) -> None:
        view = self._sites.linear(self._model, site.layer, site.part)
        weight = self._weights.get(view.module)
        if weight is None:
            architecture = self._sites.layers[site.layer].architecture
            held = architecture.held_at(view.linear.path)
            mine = [self._sites.linear(self._model, site.layer, one.role) for one in held]
            weight = self._weights[view.module] = _GatedWeight(mine)
            self._opened().enter_context(weight)
        weight.gates[view.linear.role] = lambda held: self._gated(name, held, self._gates[name])

    def _gated(self, name: str, value: Tensor, gate: Tensor) -> Tensor:
        product = value * gate.to(value.dtype)
        if name in self._straight_through:
            product = straight_through(product, value)
        if name in self._levels:
            product = straight_through(self._levels[name].nearest(product), product)
        return product


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` forward; backward its gradient goes to `carrier` unchanged, and none to `value`."""
    result: Tensor = _StraightThrough.apply(value, carrier)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, carrier: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def _of_choices(gate: Tensor, rows: int) -> Tensor:
    """One gate per example for the `rows` that a model makes of its choices, or a layer of its
    tokens, example by example."""
    if rows % max(gate.shape[0], 1):
        raise PlanError(f"expected gates for a batch of {rows} rows, got {gate.shape[0]}")
    return gate.repeat_interleave(rows // gate.shape[0], 0)


class _GatedWeight(AbstractContextManager["_GatedWeight"]):
    """A module that computes with the gated weights of its linears while the context is open. Not a
    parametrization: that would rename the weight in every checkpoint that is written meanwhile.

    Args:
        views: every linear that the module holds, in their order.
    """

    def __init__(self, views: Sequence[LinearView]) -> None:
        self.views = views
        self.gates: dict[str, Callable[[Tensor], Tensor]] = {}  # by role

    def __enter__(self) -> _GatedWeight:
        module = self.views[0].module
        self._before = module.__dict__.get("forward")
        module.forward = self._forward
        return self

    def __exit__(self, *error: object) -> None:
        module = self.views[0].module
        del module.forward
        if self._before is not None:
            module.forward = self._before

    def _forward(self, x: Tensor) -> Tensor:
        weights = [self.gates.get(view.linear.role, _unchanged)(view.weight) for view in self.views]
        bias = self.views[0].module.bias
        assert bias is None or isinstance(bias, Tensor)
        return F.linear(x, together(weights, self.views[0]), bias)


def _unchanged(weight: Tensor) -> Tensor:
    return weight
