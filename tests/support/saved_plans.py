"""Plans of the models that tests save, and a folder as format 1 wrote it."""

from __future__ import annotations

from pathlib import Path

import torch

from secateurs import (
    HeadMask,
    ModuleMask,
    NeuronMask,
    SparsityPlan,
)
from secateurs.plan import BlockMask
from secateurs.plan.quantization import Levels

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
MASKS = {
    "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
    "layers.1.attention": ModuleMask(torch.tensor(False)),
    "layers.0.neurons": NeuronMask(torch.arange(96) % 3 == 0),
}
PLAN = SparsityPlan(MASKS)
BLOCKS = SparsityPlan({"layers.1.up": BlockMask(torch.eye(6, 4).bool(), (16, 16))})
LEVELS = SparsityPlan(MASKS, levels={"layers.0.up": Levels(4, 0.05)})
TEXT = {"input_ids": torch.arange(3, 21).view(2, 9)}
