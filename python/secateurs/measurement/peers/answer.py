"""A model as exporters take it: inputs by position, and one tensor out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from secateurs.data.batches import main_output, run


class Answer(nn.Module):
    """The main output of a model.

    Args:
        names: of its inputs, in the order of their positions.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        return main_output(run(self.model, dict(zip(self.names, inputs, strict=True))))
