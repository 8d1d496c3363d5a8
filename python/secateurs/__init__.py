"""secateurs prunes trained Transformers and makes them really faster.

plan = secateurs.prune(model, batches, method="gradient", budget="heads=0.5,neurons=0.5")
fast = secateurs.convert(model, plan)
print(secateurs.explain(fast))
secateurs.save(fast, "pruned")
"""

from __future__ import annotations

from secateurs.apply import apply
from secateurs.capture import capture
from secateurs.checkpoint import export_dense, load, save
from secateurs.convert import convert, explain
from secateurs.environment import env_report
from secateurs.errors import SecateursError
from secateurs.formats import BlockSparseWeight
from secateurs.gates import Gates
from secateurs.levels import Levels
from secateurs.measure import measure
from secateurs.ops import use_backend
from secateurs.plan import (
    BlockMask,
    HeadMask,
    ModuleMask,
    NeuronMask,
    PatternMask,
    SparsityPlan,
)
from secateurs.pruning import METHODS, Budget, Needs, prune
from secateurs.session import Session
from secateurs.sites import find_sites
from secateurs.training import distill

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "BlockMask",
    "BlockSparseWeight",
    "Budget",
    "Gates",
    "HeadMask",
    "Levels",
    "ModuleMask",
    "Needs",
    "NeuronMask",
    "PatternMask",
    "SecateursError",
    "Session",
    "SparsityPlan",
    "apply",
    "capture",
    "convert",
    "distill",
    "env_report",
    "explain",
    "export_dense",
    "find_sites",
    "load",
    "measure",
    "prune",
    "save",
    "use_backend",
]
