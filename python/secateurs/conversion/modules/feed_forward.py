"""The feed-forward sub-layer of a converted layer."""

from __future__ import annotations

from torch import Tensor, nn

from secateurs.conversion.modules.part import Linear


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) where there is a gate; the residual, if
    there is one, is fused in.

    `activation` is a module only where the kernels' epilogue has no such function.
    """

    def __init__(
        self, up: Linear, down: Linear, gate: Linear | None, activation: nn.Module | None
    ) -> None:
        super().__init__()
        self.up, self.down, self.gate, self.activation = up, down, gate, activation

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        if self.activation is None:
            h = self.up(x) if self.gate is None else self.gate(x, multiplier=self.up(x))
        elif self.gate is None:
            h = self.activation(self.up(x))
        else:
            h = self.activation(self.gate(x)) * self.up(x)
        y: Tensor = self.down(h, residual=residual)
        return y
