"""Plans: what a model loses and keeps, as pure data."""

from secateurs.plan.masks import (
    AttentionRuleMask,
    BlockMask,
    HeadMask,
    Mask,
    ModuleMask,
    NeuronMask,
    PatternMask,
)
from secateurs.plan.quantization import Levels
from secateurs.plan.site import Site
from secateurs.plan.sparsity_plan import SparsityPlan

__all__ = [
    "AttentionRuleMask",
    "BlockMask",
    "HeadMask",
    "Levels",
    "Mask",
    "ModuleMask",
    "NeuronMask",
    "PatternMask",
    "Site",
    "SparsityPlan",
]
