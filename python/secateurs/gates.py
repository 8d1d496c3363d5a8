"""Gates: the one mechanism by which a mask, soft or hard, acts on a live model.

A gate multiplies what a unit produces: the context of a head before the output projection, the
activation of a neuron before the down projection, the result of a whole sub-layer before its
residual is added, or the elements of a weight. Gates are differentiable, and may carry a leading
batch dimension, so that a gradient with respect to a gate is one per example. Leaving restores the
model exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateurs.errors import PlanError
from secateurs.plan import SparsityPlan
from secateurs.sites import Sites


class Gates(Mapping[str, Tensor]):
    """Open gates on `model`; use as a context manager.

    Args:
        model: a stock model; its hooks and parametrizations are as before once the context is left.
        sites: of that model.

    Set a gate with `gates[name] = tensor`, in the model's device and dtype, at any time inside the
    context:

    | site | shape | acts on |
    |---|---|---|
    | `layers.I.heads` | `[H]` or `[B, H]` | head contexts |
    | `layers.I.neurons` | `[F]` or `[B, F]` | FFN activations |
    | `layers.I.attention`, `layers.I.ffn` | `[]` or `[B]` | the sub-layer's output, bias included |
    | `layers.I.query`, ... | `[N, K]` | the weight |
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        self._model, self._sites = model, sites
        self._by_name = {site.name: site for site in sites}
        self._gates: dict[str, Tensor] = {}
        self._stack: ExitStack | None = None

    def __enter__(self) -> Gates:
        self._stack = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = None
        self._gates.clear()

    def __getitem__(self, name: str) -> Tensor:
        return self._gates[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)

    def __setitem__(self, name: str, gate: Tensor) -> None:
        if self._stack is None:
            raise PlanError("gates can be set only inside `with Gates(model, sites) as gates`")
        site = self._by_name.get(name)
        if site is None or name.endswith(".layer"):
            raise PlanError(f"no gate can stand at {name!r}: the model has no such site")
        batched = site.kind != "linear" and gate.dim() == len(site.shape) + 1
        if tuple(gate.shape[1:] if batched else gate.shape) != site.shape:
            raise PlanError(
                f"the gate of {name} must have shape {site.shape}, got {tuple(gate.shape)}"
            )
        known = name in self._gates
        self._gates[name] = gate
        if not known:
            self._open(name, site.kind, site.layer)

    def set_plan(self, plan: SparsityPlan) -> None:
        """Set hard gates: zero where `plan` removes, one where it keeps."""
        plan.validate(self._sites, self._sites.fingerprint())
        like = next(self._model.parameters())
        for i in range(len(self._sites.layers)):
            keep = self._sites.keep(plan, i)
            gates: dict[str, Tensor] = {"heads": keep.heads, "neurons": keep.neurons}
            gates["attention"] = torch.tensor(keep.attention)
            gates["ffn"] = torch.tensor(keep.ffn)
            gates |= {role: keep.elements(role) for role in keep.blocks}
            for part, mask in gates.items():
                if not bool(mask.all()):
                    self[f"layers.{i}.{part}"] = mask.to(like)

    def _open(self, name: str, kind: str, layer: int) -> None:
        assert self._stack is not None
        part = name.rsplit(".", 1)[1]
        if kind == "linear":
            linear = self._sites.linear(self._model, layer, part)
            self._stack.enter_context(_gated_weight(linear, lambda: self._gates[name]))
            return
        before = kind in ("heads", "neurons")
        role = "output" if part in ("heads", "attention") else "down"
        linear = self._sites.linear(self._model, layer, role)
        width = self._sites.layers[layer].head_dim if kind == "heads" else 1

        def scale(x: Tensor) -> Tensor:
            """Multiply `x` `[B, T, C]` by the gate, each entry over its `width` channels."""
            gate = self._gates[name]
            batched = gate.dim() == (2 if before else 1)
            channels = gate.repeat_interleave(width, -1) if before else gate[..., None]
            return x * (channels[:, None] if batched else channels).to(x.dtype)

        def gate_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (scale(args[0]), *args[1:])

        def gate_output(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return scale(out)

        hook = linear.register_forward_pre_hook(gate_input) if before else None
        hook = hook or linear.register_forward_hook(gate_output)
        self._stack.callback(hook.remove)


@contextmanager
def _gated_weight(linear: nn.Module, gate):  # type: ignore[no-untyped-def]
    class Gated(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * gate()

    original, names = linear.weight, list(linear._parameters)
    parametrize.register_parametrization(linear, "weight", Gated())
    try:
        yield
    finally:
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
        assert linear.weight is original
        for name in names:  # the order of a module's parameters is part of what optimizers save
            linear._parameters[name] = linear._parameters.pop(name)
